use serde::{Deserialize, Serialize};

/// How pages travelled, each sending counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Encodings {
    /// As they are.
    pub raw: EncodedPages,
    /// As "all zero", without payload.
    pub zero: EncodedPages,
    /// Compressed with LZ4.
    pub lz4: EncodedPages,
    /// Bytes that compressing kept off the wire.
    pub saved_bytes: u64,
    /// Time that all page channels together spent compressing, pages that went raw all the same included, in ms.
    pub compress_ms: f64,
}

/// Pages that travelled in one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EncodedPages {
    /// Pages.
    pub pages: u64,
    /// Payload bytes that they were on the wire.
    pub bytes: u64,
}
