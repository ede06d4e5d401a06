//! Bearer tokens in files.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Least bytes of a token: 128 bits in hex are twice that.
const MIN_TOKEN: usize = 16;

/// Reads a token; white space around it is cut.
pub fn read_token(path: &Path) -> Result<String> {
    let token =
        std::fs::read_to_string(path).with_context(|| format!("can't read the token {}", path.display()))?;
    let token = token.trim();
    ensure!(
        token.len() >= MIN_TOKEN && token.bytes().all(|b| b.is_ascii_graphic()),
        "{} holds no token: at least {MIN_TOKEN} printable ASCII characters, e.g. of `openssl rand -hex 32`",
        path.display()
    );
    Ok(token.to_owned())
}
