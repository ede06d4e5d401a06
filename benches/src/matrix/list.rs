use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::{F64Deserializer, I64Deserializer, SeqAccessDeserializer, StrDeserializer};
use serde::de::{Deserializer, Error, IntoDeserializer, SeqAccess, Visitor};

/// Values of an axis: one, or a list of which each is tried. Unlike an untagged enum it passes on what is wrong with a
/// value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T>(pub Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Read(PhantomData))
    }
}

struct Read<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Read<T> {
    type Value = List<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value or a list of values")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<List<T>, E> {
        let value: StrDeserializer<'_, E> = text.into_deserializer();
        Ok(List(vec![T::deserialize(value)?]))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<List<T>, E> {
        let value: I64Deserializer<E> = number.into_deserializer();
        Ok(List(vec![T::deserialize(value)?]))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<List<T>, E> {
        let value: F64Deserializer<E> = number.into_deserializer();
        Ok(List(vec![T::deserialize(value)?]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<List<T>, A::Error> {
        let values = Vec::deserialize(SeqAccessDeserializer::new(list))?;
        match values.is_empty() {
            true => Err(A::Error::invalid_length(0, &"at least one value")),
            false => Ok(List(values)),
        }
    }
}
