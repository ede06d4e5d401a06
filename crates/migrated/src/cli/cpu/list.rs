//! The named baselines for people.

use migrated_api::{BaselineLevel, BaselineList, FeatureSet};

use crate::cli::output::table;

/// Columns that a list of features fills.
const WIDTH: usize = 80;

/// Every level with what it adds, drops and has as parts.
pub fn for_people(list: &BaselineList) -> String {
    list.baselines.iter().map(level).collect::<Vec<_>>().join("\n\n")
}

fn level(level: &BaselineLevel) -> String {
    let on = level.on.as_ref().map(|on| format!(", on {on}")).unwrap_or_default();
    let fixed = [("adds", &level.adds), ("drops", &level.drops)].map(|(name, set)| (name.to_owned(), set));
    let parts = level.parts.iter().map(|(name, set)| (format!("+{name}"), set));
    let rows = fixed.into_iter().chain(parts).filter(|(_, set)| !set.is_empty());
    let rows = rows.map(|(name, set)| vec![format!("  {name}"), wrapped(set)]);
    format!("{}: {}{on}\n{}", level.name, level.title, table(&[], rows))
}

/// Names of features in lines that a terminal shows whole.
pub fn wrapped(features: &FeatureSet) -> String {
    let mut lines: Vec<String> = Vec::new();
    for feature in features.iter() {
        let name = feature.name();
        match lines.last_mut() {
            Some(line) if line.len() + 1 + name.len() <= WIDTH => {
                line.push(' ');
                line.push_str(name);
            }
            _ => lines.push(name.to_owned()),
        }
    }
    lines.join("\n")
}
