use std::collections::BTreeMap;

use migrated_guest::{GuestError, SectionId, StateSection};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The sections of one guest, exactly those that were expected.
#[derive(Debug)]
pub(super) struct Sections(BTreeMap<SectionId, Vec<u8>>);

impl Sections {
    /// # Errors
    /// [`GuestError::Section`] names the first that is unknown, of another version, there twice, or missing.
    pub(super) fn matching(expected: &[SectionId], sections: Vec<StateSection>) -> Result<Self, GuestError> {
        let mut found = BTreeMap::new();
        for section in sections {
            let id = section.id;
            if !expected.contains(&id) {
                return Err(refused(&id, unexpected(expected, &id)));
            }
            if found.insert(id.clone(), section.data).is_some() {
                return Err(refused(&id, "it is there twice".into()));
            }
        }
        match expected.iter().find(|id| !found.contains_key(id)) {
            Some(id) => Err(refused(id, "it is missing; the source can't save it or lost it".into())),
            None => Ok(Self(found)),
        }
    }

    /// The bytes of a section that was expected.
    ///
    /// # Panics
    /// On a section that was not, or was taken already.
    pub(super) fn take(&mut self, id: &SectionId) -> Vec<u8> {
        self.0.remove(id).expect("all expected sections are there, and each is taken once")
    }
}

fn unexpected(expected: &[SectionId], id: &SectionId) -> String {
    let same = |e: &&SectionId| e.kind == id.kind && e.instance == id.instance;
    match expected.iter().find(same) {
        Some(ours) => format!("this program knows version {} of it", ours.version),
        None if expected.iter().any(|e| e.kind == id.kind) => "this machine has no such instance".into(),
        None => "this host does not know it; its KVM or this program may be older than the source's".into(),
    }
}

pub(super) fn refused(id: &SectionId, reason: String) -> GuestError {
    GuestError::Section { section: id.to_string(), reason }
}

/// One of KVM's structures as its bytes.
pub(super) fn raw<T: IntoBytes + Immutable>(value: &T) -> Vec<u8> {
    value.as_bytes().to_vec()
}

/// One of KVM's structures out of exactly its bytes.
pub(super) fn from_raw<T: FromBytes>(bytes: &[u8]) -> Result<T, String> {
    T::read_from_bytes(bytes).map_err(|_| format!("it has {} bytes and not {}", bytes.len(), size_of::<T>()))
}

/// One of our structures as bytes.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain data always encodes")
}

/// One of our structures out of exactly its bytes.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(format!("{} bytes are left over", rest.len())),
        Err(error) => Err(format!("its {} bytes are malformed: {error}", bytes.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(kind: &str, instance: u32, version: u32) -> SectionId {
        SectionId { kind: kind.into(), instance, version }
    }

    fn expected() -> Vec<SectionId> {
        vec![id("regs", 0, 1), id("regs", 1, 1), id("pit", 0, 2), id("clock", 0, 1)]
    }

    fn section(id: SectionId) -> StateSection {
        StateSection { id, data: vec![] }
    }

    fn any_id() -> impl Strategy<Value = SectionId> {
        (prop::sample::select(vec!["regs", "pit", "clock", "vga"]), 0u32..3, 1u32..4)
            .prop_map(|(kind, instance, version)| id(kind, instance, version))
    }

    proptest! {
        #[test]
        fn only_the_expected_sections_in_any_order_are_taken(
            mut ids in prop::collection::vec(any_id(), 0..6), exact in any::<bool>(), rotate in 0usize..4,
        ) {
            if exact {
                ids = expected();
                ids.rotate_left(rotate);
            }
            let mut sorted = ids.clone();
            sorted.sort();
            let mut wanted = expected();
            wanted.sort();
            let taken = Sections::matching(&expected(), ids.into_iter().map(section).collect());
            prop_assert_eq!(taken.is_ok(), sorted == wanted);
        }
    }

    #[test]
    fn refusals_name_the_section_and_say_why() {
        let refusal = |change: fn(&mut Vec<SectionId>)| {
            let mut ids = expected();
            change(&mut ids);
            Sections::matching(&expected(), ids.into_iter().map(section).collect()).unwrap_err().to_string()
        };
        assert!(refusal(|ids| ids[2].version = 3).contains("pit/0 v3"));
        assert!(refusal(|ids| ids[2].version = 3).contains("version 2"));
        assert!(refusal(|ids| ids[1].instance = 7).contains("no such instance"));
        assert!(refusal(|ids| ids.push(id("vga", 0, 1))).contains("does not know"));
        assert!(refusal(|ids| ids.push(id("pit", 0, 2))).contains("twice"));
        assert!(refusal(|ids| drop(ids.remove(3))).contains("clock/0 v1"));
    }

    #[test]
    fn other_lengths_are_malformed() {
        let bytes = encode(&(1u32, vec![2u8, 3]));
        assert_eq!(decode::<(u32, Vec<u8>)>(&bytes).unwrap(), (1, vec![2, 3]));
        assert!(decode::<(u32, Vec<u8>)>(&bytes[..bytes.len() - 1]).is_err());
        assert!(decode::<(u32, Vec<u8>)>(&[&bytes[..], &[0]].concat()).unwrap_err().contains("left over"));
        assert_eq!(from_raw::<u32>(&raw(&7u32)).unwrap(), 7);
        assert!(from_raw::<u32>(&[0; 5]).unwrap_err().contains("5 bytes"));
    }
}
