//! The command line: what it takes.

use clap::{CommandFactory, Parser};

use crate::cli::Cli;

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn what_people_type_is_taken_or_refused() {
    let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(drop).map_err(|e| e.to_string());
    for line in [
        "migrated serve --config host.toml --listen 127.0.0.1:1 --token-file t --migration-ports 1-2",
        "migrated vm create --name a --workload hot=1M --memory 1G --vcpus 2 --backing thp --prefault",
        "migrated vm create --name a --kernel k --initramfs i --cmdline c",
        "migrated vm create --name a --kernel k --net bridge=br0 --net bridge=br1,mac=52:54:00:12:34:56,bridge@b=br2",
        "migrated vm console a --follow",
        "migrated vm shutdown a --timeout 0s",
        "migrated vm balloon a 256M",
        "migrated vm balloon a 0",
        "migrated vm console a --from 5 --escape ^A",
        "migrated vm console a --no-input --from 0",
        "migrated migrate a --to b --max-downtime 50ms --bandwidth 1gbit --channels 2 --verify before --timeout 60s \
         --on-timeout stop --transport tcp+tls --watch",
        "migrated migrate a --to b --plan --link 1gbit --rtt 10ms --sample 1s --max-total 30s --json",
        "migrated migration show 1 --watch --json",
        "migrated --host http://x --token-file t --json vm list",
        "migrated certs init --dir d a b",
        "migrated completions bash",
        "migrated vm create --name a --workload hot=1M --cpu-baseline intel-haswell+spec",
        "migrated workload build --out f --vcpus 2 --json",
        "migrated workload counters a b",
        "migrated cpu show",
        "migrated cpu dump --json",
        "migrated cpu baseline --list",
        "migrated cpu baseline a b.json http://c --toml",
        "migrated cpu check --vm v --to b",
        "migrated cpu check --vm v",
        "migrated cpu check a.json b.json --baseline site.toml --json",
        "migrated serve --simulate-cpu a.json",
    ] {
        assert_eq!(parse(line), Ok(()), "{line}");
    }
    for (line, says) in [
        ("migrated vm create --name a", "--workload"),
        ("migrated vm create --name a --workload x --kernel k", "cannot be used with"),
        ("migrated vm create --name a --workload x --initramfs i", "cannot be used with"),
        ("migrated vm create --name a --workload x --memory lots", "no size"),
        ("migrated vm create --name a --workload x --net br0", "is no part of a network"),
        ("migrated vm create --name a --workload x --net bridge=b,mtu=65522", "no MTU"),
        ("migrated vm balloon a", "<SIZE>"),
        ("migrated vm balloon a most", "no size"),
        ("migrated vm console a --escape ^1x", "no key"),
        ("migrated vm console a --send x --follow", "cannot be used with"),
        ("migrated vm console a --no-input --follow", "cannot be used with"),
        ("migrated migrate a", "--to"),
        ("migrated migrate a --to b --max-downtime 50", "no duration"),
        ("migrated migrate a --to b --bandwidth fast", "no rate"),
        ("migrated migrate a --to b --max-total 30", "no duration"),
        ("migrated migrate a --to b --plan --link fast", "no rate"),
        ("migrated migrate a --to b --link 1gbit", "--plan"),
        ("migrated migrate a --to b --plan --watch", "cannot be used with"),
        ("migrated migrate a --to b --transport pigeon", "unknown transport"),
        ("migrated serve --migration-ports 9-1", "no port range"),
        ("migrated vm list --cert c", "--key"),
        ("migrated cpu baseline", "HOST|FILE"),
        ("migrated cpu baseline --list a", "cannot be used with"),
        ("migrated cpu check a", "2 values"),
        ("migrated cpu check", "FROM"),
        ("migrated cpu check --vm v a b", "cannot be used with"),
        ("migrated cpu check --vm v --baseline b", "cannot be used with"),
    ] {
        let refused = parse(line).unwrap_err();
        assert!(refused.contains(says), "{line}: {refused}");
    }
}
