use super::*;

/// The example with every key that is commented out put in.
fn whole_example() -> String {
    let uncommented = EXAMPLE.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if rest.starts_with('[') || is_key(rest) => rest,
        _ => line,
    });
    uncommented.collect::<Vec<_>>().join("\n")
}

fn is_key(line: &str) -> bool {
    let name = line.split_once(" = ").map(|(name, _)| name);
    name.is_some_and(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
}

fn error(text: &str) -> String {
    let checked = HostConfig::parse(text).and_then(|config| config.validate());
    format!("{:#}", checked.unwrap_err())
}

#[test]
fn the_example_shows_the_defaults() {
    assert_eq!(HostConfig::parse(EXAMPLE).unwrap(), HostConfig::default());
    HostConfig::default().validate().unwrap();
}

#[test]
fn the_example_shows_every_key_and_each_is_one() {
    let config = HostConfig::parse(&whole_example()).unwrap();
    config.validate().unwrap();
    // Everything that is nothing by default is something here.
    let tls = config.api.tls.unwrap();
    assert!(tls.ca.is_some() && config.api.listen.is_some() && config.api.token_file.is_some());
    assert!(config.guests.memory_limit_bytes.is_some());
    assert!(config.migration.ip.is_some() && config.migration.server_name.is_some());
    assert!(config.migration.tls.is_some());
    assert!(
        config.migration.defaults.bandwidth_bps.is_some() && config.migration.defaults.channels.is_some()
    );
    assert!(config.testing.simulate_cpu.is_some() && config.testing.prefetch_pages.is_some());
    let peer = &config.peers["host-b"];
    assert!(peer.token_file.is_some() && peer.ca.is_some() && peer.server_name.is_some());
}

#[test]
fn unknown_keys_are_refused_at_every_level() {
    for text in [
        "colour = 1",
        "[api]\ncolour = 1",
        "[api.tls]\ncert = \"a\"\nkey = \"b\"\ncolour = 1",
        "[guests]\ncolour = 1",
        "[testing]\ncolour = 1",
        "[migration]\ncolour = 1",
        "[migration.defaults]\ncolour = 1",
        "[migration.tls]\nca = \"a\"\ncert = \"a\"\nkey = \"b\"\ncolour = 1",
        "[peers.b]\nurl = \"http://b\"\ncolour = 1",
    ] {
        assert!(error(text).contains("unknown field `colour`"), "{text}: {}", error(text));
    }
}

#[test]
fn an_open_door_is_refused_and_a_locked_one_is_not() {
    let listen = "[api]\nlisten = \"127.0.0.1:1\"\n";
    assert!(error(listen).contains("token_file"), "{}", error(listen));
    let tls = format!("{listen}[api.tls]\ncert = \"a\"\nkey = \"b\"\n");
    assert!(error(&tls).contains("client certificates"), "{}", error(&tls));
    HostConfig::parse(&format!("{tls}ca = \"c\"\n")).unwrap().validate().unwrap();
    HostConfig::parse(&format!("{listen}token_file = \"t\"\n")).unwrap().validate().unwrap();
}

#[test]
fn values_that_cant_be_are_refused_by_name() {
    for (text, name) in [
        ("name = \"\"", "`name`"),
        ("[api]\nsocket_mode = \"rw\"", "socket_mode"),
        ("[api]\nsocket_mode = \"1777\"", "socket_mode"),
        ("[migration]\nports = [2, 1]", "ports"),
        ("[migration]\nip = \"0.0.0.0\"", "migration.ip"),
        ("[migration]\nadvertise = [\"host-b\"]", "invalid IP address"),
        ("[migration]\nadvertise = [\"::\"]", "no source can connect"),
        ("[migration]\nadvertise = [\"224.0.0.1\"]", "no source can connect"),
        ("[migration]\nadvertise = [\"fe80::1\"]", "another host on each link"),
        ("[migration]\nadvertise = [\"10.0.0.1\", \"fd00::1\", \"10.0.0.1\"]", "there twice"),
        ("[migration]\nip = \"10.0.0.1\"\nadvertise = [\"fd00::1\"]", "received on 10.0.0.1"),
        ("[migration.defaults]\nreconnect_window_ms = 600001", "reconnect_window_ms"),
        ("[migration.defaults]\nmax_downtime_ms = 0", "max_downtime_ms"),
        ("[migration.defaults]\ntimeout_s = nan", "timeout_s"),
        ("[migration.defaults]\nchannels = 65", "channels"),
        ("[migration.defaults]\nbandwidth_bps = 0", "bandwidth_bps"),
        ("[migration.defaults]\nmax_iterations = 0", "max_iterations"),
        ("[guests]\nhide_cpu_features = [\"avx_512f\"]", "did you mean avx512f?"),
        ("[guests]\nhide_cpu_features = [\"\"]", "hide_cpu_features"),
        ("[migration.defaults]\non_timeout = \"pray\"", "on_timeout"),
    ] {
        assert!(error(text).contains(name), "{text}: {}", error(text));
    }
    let unspecified = "[api]\nlisten = \"0.0.0.0:1\"\ntoken_file = \"t\"";
    assert!(error(unspecified).contains("migration.ip"), "{}", error(unspecified));
}

#[test]
fn guests_are_received_where_the_api_is_unless_told_otherwise() {
    let ip = |text: &str| HostConfig::parse(text).unwrap().migration_ip().to_string();
    assert_eq!(ip(""), "127.0.0.1");
    assert_eq!(ip("[api]\nlisten = \"10.0.0.1:1\""), "10.0.0.1");
    assert_eq!(ip("[api]\nlisten = \"10.0.0.1:1\"\n[migration]\nip = \"10.0.1.1\""), "10.0.1.1");
    let told = |text: &str| {
        let config = HostConfig::parse(&format!("[migration]\n{text}")).unwrap();
        config.validate().unwrap();
        config.migration_ip().to_string()
    };
    assert_eq!(told("advertise = [\"10.0.0.1\", \"10.0.1.1\"]"), "0.0.0.0");
    assert_eq!(told("advertise = [\"10.0.0.1\", \"fd00::1\"]"), "::");
    assert_eq!(told("ip = \"10.0.0.1\"\nadvertise = [\"192.0.2.1\"]"), "10.0.0.1");
}
