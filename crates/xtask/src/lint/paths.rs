//! Documents name files; a file that moved must take its mention along.

/// Where the project's files lie; a backticked word that starts so is a path.
const FOLDERS: [&str; 8] =
    ["crates/", "transports/", "benches/", "chaos/", "fuzz/", "dashboards/", ".ci/", ".github/"];

/// Paths that `text` names in backticks and that `exists` doesn't know.
pub fn check(document: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut breaches = Vec::new();
    for (index, line) in text.lines().enumerate() {
        // Every second piece between backticks is code.
        let code = line.split('`').skip(1).step_by(2);
        for path in code.filter(|code| FOLDERS.iter().any(|folder| code.starts_with(folder))) {
            if !path.contains(['*', '{', ' ', '<']) && !exists(path) {
                breaches.push(format!("{document}:{}: {path} does not exist", index + 1));
            }
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_of_the_project_in_backticks_count() {
        let text = "`crates/a` and `crates/b.rs`\ncrates/c, `Cargo.toml`, `crates/*/src`, `crates/d`";
        let breaches = check("X.md", text, |path| path == "crates/a");
        assert_eq!(breaches, ["X.md:1: crates/b.rs does not exist", "X.md:2: crates/d does not exist"]);
    }
}
