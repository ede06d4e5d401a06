//! What is said about real CPUs, held against committed files that people can read.

mod common;

use std::fmt::Write;

use migrated_cpuid::{Baseline, CpuReport, FeatureSet, GuestCpu, HostCpu, Level, PoolBaseline, best_name};

fn own_guest(host: &HostCpu) -> GuestCpu {
    let baseline = Baseline::of_host(host);
    host.grant(&baseline).unwrap_or_else(|report| panic!("{}: {report:?}", host.identity.name))
}

/// A guest of everything that one host has, on each other host.
#[test]
fn each_pair_is_admitted_or_refused_with_its_list() {
    for from in common::FLEET {
        let guest = own_guest(&common::host(from));
        for to in common::FLEET {
            let report = CpuReport::of(&guest, &common::host(to));
            common::golden(&format!("pairs/{from}/{to}.txt"), &verdict(from, to, &report));
        }
    }
}

fn verdict(from: &str, to: &str, report: &CpuReport) -> String {
    let mut text = format!("a guest of all of {from} on {to}: ");
    text += if report.admitted { "admitted\n" } else { "refused\n" };
    let or_none = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".into());
    let _ = writeln!(text, "guest has:   {}", or_none(&report.guest_baseline));
    let _ = writeln!(text, "host has:    {}", or_none(&report.host_baseline));
    let _ = writeln!(text, "common:      {}", or_none(&report.common_baseline));
    for mismatch in &report.mismatches {
        let _ = writeln!(text, "mismatch:    {mismatch}");
    }
    for warning in &report.warnings {
        let _ = writeln!(text, "warning:     {}: {}", warning.field, warning.detail);
    }
    for fix in &report.fix {
        let _ = writeln!(text, "to do:       {fix}");
    }
    text
}

/// All dumps against all, a letter each.
#[test]
fn the_whole_matrix() {
    let names = common::names();
    let hosts: Vec<_> = names.iter().map(|name| common::host(name)).collect();
    let mut text = "Guests of everything of one host (rows) on each other (columns, in the same order).\n\
                    + admitted, . refused, v another vendor\n\n"
        .to_owned();
    for (name, host) in names.iter().zip(&hosts) {
        let guest = own_guest(host);
        let row: String = hosts.iter().map(|other| letter(&guest, other)).collect();
        let _ = writeln!(text, "{row}  {name}");
    }
    common::golden("matrix.txt", &text);
}

fn letter(guest: &GuestCpu, host: &HostCpu) -> char {
    let report = CpuReport::of(guest, host);
    match report.mismatches.first() {
        None => '+',
        Some(mismatch) if mismatch.field == "vendor" => 'v',
        Some(_) => '.',
    }
}

/// What each real CPU offers, and what its next level lacks.
#[test]
fn what_each_host_offers() {
    let mut text = String::new();
    for name in common::names() {
        let host = common::host(&name);
        let offered = host.offered();
        let vendor = migrated_cpuid::Vendor::of(&host.vendor());
        let _ = writeln!(text, "{name}: {}", best_name(&host).unwrap_or_else(|| "below the ladder".into()));
        let psabi = Level::best(None, offered).map_or("none", |level| level.name);
        let _ = writeln!(text, "  psABI:    {psabi}");
        let next = Level::best(vendor, offered).and_then(|level| level.next(offered));
        if let Some((level, lacks)) = next {
            let _ = writeln!(text, "  next:     {} needs {lacks}", level.name);
        }
        let beyond = best_name(&host).and_then(|name| Baseline::level(&name).ok());
        let beyond = offered - beyond.map_or(FeatureSet::EMPTY, |baseline| baseline.features);
        let _ = writeln!(text, "  besides:  {beyond}");
        let _ = writeln!(text, "  not given: {}", host.kvm.features() - offered);
    }
    common::golden("hosts.txt", &text);
}

/// The ladders, level by level.
#[test]
fn what_each_level_adds() {
    let mut text = String::new();
    for level in Level::all() {
        let on = level.on.map(|on| format!(" = {on} and")).unwrap_or_default();
        let _ = writeln!(text, "{}{on} ({})", level.name, level.title);
        let _ = writeln!(text, "  adds:  {}", level.adds);
        if !level.drops.is_empty() {
            let _ = writeln!(text, "  drops: {}", level.drops);
        }
        for (part, features) in &level.parts {
            let _ = writeln!(text, "  +{part}: {features}");
        }
    }
    common::golden("ladders.txt", &text);
}

/// The table of each level is made without looking at the host.
#[test]
fn a_level_is_the_same_table_on_every_host_that_can_give_it() {
    let hosts: Vec<_> = common::names().iter().map(|name| common::host(name)).collect();
    for level in Level::all() {
        let baseline = Baseline::level(level.name).unwrap();
        let granted: Vec<_> =
            hosts.iter().filter_map(|host| Some((host, host.grant(&baseline).ok()?))).collect();
        for vendor in ["GenuineIntel", "AuthenticAMD"] {
            let mut tables =
                granted.iter().filter(|(host, _)| host.vendor() == vendor).map(|(_, guest)| &guest.table);
            if let Some(first) = tables.next() {
                assert!(tables.all(|table| table == first), "{}", level.name);
            }
        }
    }
}

/// Fleets as people have them.
#[test]
fn common_baselines_of_fleets() {
    let fleets: [&[&str]; 5] = [
        &["intel-haswell", "intel-broadwell", "intel-skylake"],
        &["intel-skylake", "intel-cascadelake", "intel-icelake"],
        &["intel-cascadelake", "intel-icelake", "intel-sapphirerapids", "intel-graniterapids"],
        &["amd-zen2", "amd-zen3", "amd-zen4"],
        &["amd-zen", "amd-bulldozer"],
    ];
    let mut text = String::new();
    for fleet in fleets {
        let hosts: Vec<_> = fleet.iter().map(|name| common::host(name)).collect();
        let _ = writeln!(text, "{}:", fleet.join(" "));
        match PoolBaseline::of(&hosts) {
            Ok(pool) => describe(&mut text, &pool),
            Err(error) => {
                let _ = writeln!(text, "  {error}");
            }
        }
    }
    common::golden("fleets.txt", &text);
}

fn describe(text: &mut String, pool: &PoolBaseline) {
    let _ = writeln!(text, "  common:   {} ({})", pool.name, pool.x86_64_level.as_deref().unwrap_or("none"));
    let _ = writeln!(text, "  besides:  {}", pool.beyond);
    for host in &pool.hosts {
        let _ = writeln!(text, "  {} loses {}", host.host, host.loses);
    }
    for limit in &pool.limits {
        let _ = writeln!(text, "  {} lacks at {}", limit.feature, limit.hosts.join(" "));
    }
    let _ = writeln!(text, "  disabled where hidden: {}", pool.lost_disabled);
    let _ = writeln!(text, "  only hidden:           {}", pool.lost_hidden);
}
