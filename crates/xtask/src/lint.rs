//! The rules of the house that neither rustc nor clippy knows.

mod arrows;
mod dashboards;
mod leftovers;
mod paths;
mod rooms;
mod sizes;
mod tokens;

use std::collections::BTreeSet;
use std::fs;
use std::process::ExitCode;

use anyhow::Context;

use crate::tree::Tree;

/// Documents whose paths are checked.
const DOCUMENTS: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "benches/README.md", "chaos/README.md"];

/// Where the daemon declares its metrics, and the documents that name them.
const METRICS: &str = "crates/migrated/src/metrics.rs";
const DASHBOARDS: [&str; 2] = ["dashboards/migrated.json", "dashboards/alerts.yml"];

/// Checks every rule and prints every breach before it fails.
pub fn run(tree: &Tree) -> anyhow::Result<ExitCode> {
    let sources = tree.sources()?;
    let mut breaches = arrows::check(&arrows::read(tree)?);

    let sizes = sizes::Sizes::of(&sources);
    println!("{sizes}");
    breaches.extend(sizes.breaches());

    let mut metrics = BTreeSet::new();
    for source in &sources {
        breaches.extend(leftovers::in_text(source));
        match tokens::read(&source.text) {
            Ok(tokens) => {
                if source.path == METRICS {
                    metrics = dashboards::declared(&tokens);
                }
                breaches.extend(rooms::check(&source.path, &tokens));
                breaches.extend(leftovers::in_tokens(&source.path, &tokens));
            }
            Err(error) => breaches.push(format!("{}: not Rust: {error}", source.path)),
        }
    }

    for document in DASHBOARDS {
        let text = fs::read_to_string(tree.join(document)).context(document)?;
        breaches.extend(dashboards::check(document, &text, &metrics));
    }
    for document in DOCUMENTS {
        let text = fs::read_to_string(tree.join(document)).context(document)?;
        breaches.extend(paths::check(document, &text, |path| tree.join(path).exists()));
    }

    for breach in &breaches {
        eprintln!("lint: {breach}");
    }
    if breaches.is_empty() {
        println!(
            "lint: arrows, sizes, unsafe rooms, leftovers, paths and metrics in documents: all fine ({} files)",
            sources.len()
        );
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("lint: {} breaches; the rules are in CONTRIBUTING.md", breaches.len());
    Ok(ExitCode::FAILURE)
}
