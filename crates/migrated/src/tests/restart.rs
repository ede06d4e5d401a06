//! Daemons that end while their guests live, and guests that end while their daemon doesn't run.

use migrated_api::{MigrationRecord, MigrationState, VmState};

use migrated_testkit::wait_until;

use super::host::{Host, PATIENCE, problem};

const ENDED: &[MigrationState] =
    &[MigrationState::Completed, MigrationState::Failed, MigrationState::Cancelled];

#[test]
fn a_restarted_daemon_takes_its_vms_over() {
    let mut host = Host::new("a");
    let before = host.create("web", "").unwrap();
    let _: migrated_api::Vm = host.post("/v1/vms/web/pause", &()).unwrap();
    host.stop();
    host.start();
    let after = host.vm("web").unwrap();
    assert_eq!((after.id, after.pid, after.state), (before.id, before.pid, VmState::Paused));
    let _: migrated_api::Vm = host.post("/v1/vms/web/resume", &()).unwrap();
    host.call(host.client.delete("/v1/vms/web")).unwrap();
    assert_eq!(problem(host.vm("web")).code, "vm_not_found");
}

#[test]
fn a_vm_process_that_dies_is_told_with_its_reason_and_its_console_is_kept() {
    let mut host = Host::new("a");
    host.create("web", "").unwrap();
    host.kill_vm("web");
    host.wait_gone("web");
    let assert_kept = |host: &Host, reason: &str| {
        let vm = host.vm("web").unwrap();
        assert_eq!((vm.state, vm.pid), (VmState::Failed, None));
        assert!(vm.error.as_ref().unwrap().contains(reason), "{vm:?}");
        assert_eq!(vm.console.end, 21);
        let daemon = host.daemon.as_ref().unwrap();
        let (daemon, vm) = (std::sync::Arc::clone(daemon), daemon.vm("web").unwrap());
        let opened = host.call(crate::daemon::ConsoleReader::open(daemon, vm, 0, true, None));
        let (start, reader) = opened.unwrap();
        assert_eq!((start.chunk.bytes.as_slice(), start.ended), (&b"hello from the guest\n"[..], true));
        assert!(host.call(reader.next()).unwrap().is_none());
    };
    assert_kept(&host, "SIGKILL");
    assert_eq!(problem(host.post::<serde_json::Value>("/v1/vms/web/pause", &())).code, "wrong_vm_state");
    host.stop();
    host.start();
    assert_kept(&host, "while no daemon ran");
    host.call(host.client.delete("/v1/vms/web")).unwrap();
}

#[test]
fn a_death_is_noticed_when_another_daemon_had_started_the_process() {
    let mut host = Host::new("a");
    host.create("web", "").unwrap();
    host.stop();
    host.start();
    host.kill_vm("web");
    host.wait_gone("web");
    host.assert_state("web", VmState::Failed);
}

#[test]
fn a_migration_goes_on_through_a_restart_of_either_daemon() {
    let (mut a, mut b) = (Host::new("a"), Host::new("b"));
    let vm = a.create("web", "endless").unwrap();
    let begun = a.migrate("web", &b);
    a.wait(&begun.id, &[MigrationState::Precopy]);
    b.wait(&begun.id, &[MigrationState::Receiving]);
    b.stop();
    b.start();
    a.stop();
    a.start();
    assert_eq!(a.record(&begun.id).state, Some(MigrationState::Precopy));
    assert_eq!(b.record(&begun.id).state, Some(MigrationState::Receiving));
    assert_eq!(a.vm("web").unwrap().migration, Some(begun.id.clone()));
    let _: MigrationRecord = a.post(&format!("/v1/migrations/{}/cancel", begun.id), &()).unwrap();
    assert_eq!(a.wait(&begun.id, ENDED).state, Some(MigrationState::Cancelled));
    a.assert_state("web", VmState::Running);
    b.wait_until_forgotten(&vm.id);
}

#[test]
fn a_commit_is_resolved_once_the_destinations_daemon_is_back() {
    let (mut a, mut b) = (Host::new("a"), Host::new("b"));
    let vm = a.create("web", "lose-ack endless").unwrap();
    let begun = a.migrate("web", &b);
    b.wait(&begun.id, &[MigrationState::Receiving]);
    b.stop();
    a.call(a.client.post_bytes("/v1/vms/web/console", b"go".to_vec())).unwrap();
    a.wait(&begun.id, &[MigrationState::Indeterminate]);
    a.stop();
    a.start();
    assert_eq!(a.record(&begun.id).state, Some(MigrationState::Indeterminate));
    assert_eq!(problem(a.post::<serde_json::Value>("/v1/vms/web/resume", &())).code, "migration_in_progress");
    b.start();
    assert_eq!(a.wait(&begun.id, ENDED).state, Some(MigrationState::Completed));
    b.assert_state("web", VmState::Running);
    a.wait_until_forgotten(&vm.id);
}

#[test]
fn a_guest_that_left_while_its_daemon_did_not_run_has_left() {
    let (mut a, b) = (Host::new("a"), Host::new("b"));
    let vm = a.create("web", "endless").unwrap();
    let begun = a.migrate("web", &b);
    b.wait(&begun.id, &[MigrationState::Receiving]);
    let client = a.daemon.as_ref().unwrap().vm("web").unwrap();
    let socket = client.dir.control_socket();
    drop(client);
    a.stop();
    a.call(async {
        use migrated_control::{ControlClient, Request};
        let (client, _events) = ControlClient::connect(&socket, PATIENCE).await.unwrap();
        client.perform(Request::ConsoleInput { bytes: b"go".to_vec() }).await.unwrap();
    });
    b.wait(&begun.id, ENDED);
    let left_word = a.config.state_dir.join("vms").join(&vm.id).join("exit.json");
    wait_until("the VM process has left", PATIENCE, || left_word.exists());
    a.start();
    assert_eq!(a.wait(&begun.id, ENDED).state, Some(MigrationState::Completed));
    a.wait_until_forgotten(&vm.id);
    b.assert_state("web", VmState::Running);
}

#[test]
fn two_daemons_cant_have_one_state_directory() {
    let host = Host::new("a");
    let mut config = host.config.clone();
    config.api.socket = host.config.state_dir.join("other.sock");
    let ground = crate::daemon::Ground {
        vm_command: crate::daemon::VmCommand::this_program().unwrap(),
        kvm: super::host::four_vcpus,
        cpu: super::host::fitting_cpu,
        network: crate::daemon::HostNetwork::of_system(),
    };
    let error = host.call(crate::daemon::Daemon::start(config, ground)).unwrap_err();
    assert!(format!("{error:#}").contains("another daemon runs on it"), "{error:#}");
    let error = host.call(crate::http::bind(&host.config)).map(|_| ()).unwrap_err();
    assert!(format!("{error:#}").contains("another daemon answers"), "{error:#}");
}
