use migrated_control::GuestSample;
use migrated_engine::{Mode, Prediction};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{Admission, StartMigration};

/// Asks what a migration would cost: what would start it, and what is known better than it could be measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct PlanMigration {
    /// The migration. Which mode it asks for changes nothing: each is planned.
    #[serde(flatten)]
    pub migration: StartMigration,
    /// Payload that the link carries, in bits per second. When left out, what the last migration to that destination
    /// came to, else a probe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_bps: Option<u64>,
    /// Round trip time to the destination, in µs. Measured when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<f64>,
    /// How long the guest is watched, in ms: 60 to 10000, and 600 when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_ms: Option<u32>,
}

// By hand, because serde can't refuse unknown fields of a structure that another is flattened into.
impl<'de> Deserialize<'de> for PlanMigration {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut fields = Map::deserialize(from)?;
        Ok(Self {
            link_bps: take(&mut fields, "link_bps")?,
            rtt_us: take(&mut fields, "rtt_us")?,
            sample_ms: take(&mut fields, "sample_ms")?,
            migration: serde_json::from_value(Value::Object(fields)).map_err(D::Error::custom)?,
        })
    }
}

fn take<T: DeserializeOwned, E: Error>(fields: &mut Map<String, Value>, name: &str) -> Result<Option<T>, E> {
    let value = fields.remove(name).unwrap_or_default();
    serde_json::from_value(value).map_err(|e| E::custom(format!("{name}: {e}")))
}

/// What a migration would cost if it began now. Nothing was moved and nothing was changed to find it out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MigrationPlan {
    /// Id of the VM.
    pub vm: String,
    /// The destination, as it was named.
    pub to: String,
    /// What `auto` is expected to end up with.
    pub recommended: Mode,
    /// Why.
    pub reason: String,
    /// What may be lost by that which would not be lost without a migration, if anything.
    pub risk: Option<String>,
    /// What each mode would cost.
    pub prediction: Prediction,
    /// What the guest was seen to do.
    pub guest: GuestSample,
    /// What the link was taken to be.
    pub link: PlannedLink,
    /// What the numbers rest on, and what they leave out: what to make of their confidence.
    pub rests_on: Vec<String>,
    /// Whether the destination would take the guest.
    pub admission: Admission,
}

/// The link between the hosts, as a plan takes it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlannedLink {
    /// Payload, in bits per second.
    pub bps: u64,
    /// How that is known.
    pub source: LinkSource,
    /// Round trip time, in µs.
    pub rtt_us: f64,
    /// How that is known: `given`, or by a `probe`.
    pub rtt_source: LinkSource,
}

/// How something about a link is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkSource {
    /// Whoever asked said so.
    Given,
    /// The last migration from here to there came to it.
    LastMigration,
    /// It was measured for the plan, over the daemons' API: one connection, so a lower bound.
    Probe,
}

#[cfg(test)]
mod tests {
    use super::PlanMigration;

    fn read(text: &str) -> Result<PlanMigration, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn a_plan_is_asked_for_like_a_migration_and_refuses_what_it_does_not_know() {
        let asked = read(r#"{"to":"b","max_downtime_ms":5,"link_bps":7,"rtt_us":null}"#).unwrap();
        assert_eq!((asked.migration.to.as_str(), asked.link_bps, asked.rtt_us), ("b", Some(7), None));
        assert_eq!(asked.migration.max_downtime_ms, Some(5.0));
        assert_eq!(read(&serde_json::to_string(&asked).unwrap()), Ok(asked));
        assert!(read(r#"{"to":"b","speed":1}"#).unwrap_err().contains("speed"));
        assert!(read(r#"{"to":"b","link_bps":-1}"#).unwrap_err().contains("link_bps"));
        assert!(read("{}").unwrap_err().contains("`to`"));
    }
}
