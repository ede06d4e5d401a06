//! What cargo says of the programs that it built, with `--message-format=json…`: a JSON object a line.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use serde::Deserialize;

/// A program.
#[derive(Debug, PartialEq, Eq)]
pub struct Executable {
    /// Cargo's id of its package.
    pub package: String,
    /// The target's name in the package's manifest.
    pub target: String,
    pub path: PathBuf,
}

/// The programs among all that cargo made.
pub fn executables(said: &[u8]) -> Vec<Executable> {
    #[derive(Deserialize)]
    struct Message {
        package_id: String,
        target: Target,
        executable: PathBuf,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let lines = BufReader::new(said).lines().map_while(Result::ok);
    lines
        .filter_map(|line| serde_json::from_str(&line).ok())
        .map(|Message { package_id, target, executable }| Executable {
            package: package_id,
            target: target.name,
            path: executable,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_libraries_and_from_other_messages() {
        let said =
            br#"{"reason":"compiler-artifact","package_id":"p","target":{"name":"lib"},"executable":null}
{"reason":"compiler-message","package_id":"p","target":{"name":"lab"}}
{"reason":"compiler-artifact","package_id":"p","target":{"name":"lab"},"executable":"/t/lab-1"}
no JSON at all
{"reason":"build-finished","success":true}
"#;
        let lab = Executable { package: "p".into(), target: "lab".into(), path: "/t/lab-1".into() };
        assert_eq!(executables(said), [lab]);
        assert_eq!(executables(b"{}\n"), []);
    }
}
