//! Ids and secrets as hex text in messages and files, where derived code would write lists of numbers.

/// For `#[serde(with)]` on a [`MigrationId`](migrated_wire::MigrationId).
pub mod migration_id {
    use migrated_wire::MigrationId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(id: &MigrationId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(id)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MigrationId, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// For `#[serde(with)]` on a [`Token`](migrated_wire::Token).
pub mod token {
    use migrated_wire::Token;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(token: &Token, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&token.to_hex())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Token, D::Error> {
        Token::from_hex(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}
