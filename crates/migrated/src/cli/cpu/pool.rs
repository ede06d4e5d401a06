//! The highest common baseline for people.

use migrated_api::PoolBaseline;

use super::list::wrapped;
use crate::cli::output::table;

/// The baseline, what each host loses by it, and who limits it.
pub fn for_people(pool: &PoolBaseline) -> String {
    let mut rows = vec![
        vec!["baseline".into(), pool.name.clone()],
        vec!["x86-64 level".into(), pool.x86_64_level.clone().unwrap_or_else(|| "none".into())],
    ];
    if !pool.beyond.is_empty() {
        rows.push(vec!["only with --toml".into(), wrapped(&pool.beyond)]);
    }
    let hosts = pool.hosts.iter().map(|host| {
        let best = host.best.clone().unwrap_or_else(|| "none".into());
        vec![host.host.clone(), best, host.loses.len().to_string()]
    });
    let limits = pool.limits.iter().map(|limit| vec![limit.feature.to_string(), limit.hosts.join(", ")]);
    let mut parts = vec![table(&[], rows), table(&["host", "best alone", "loses"], hosts)];
    if !pool.limits.is_empty() {
        parts.push(table(&["feature", "not offered by"], limits));
    }
    for (title, features) in [
        ("truly disabled where it is hidden", &pool.lost_disabled),
        ("only hidden: software that does not ask CPUID finds it working", &pool.lost_hidden),
    ] {
        if !features.is_empty() {
            parts.push(format!("{title} ({}):\n{}", features.len(), wrapped(features)));
        }
    }
    parts.join("\n\n")
}
