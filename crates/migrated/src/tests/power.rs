//! Guests that switch themselves off, or reset themselves.

use migrated_api::{MigrationState, Vm, VmState};
use migrated_testkit::wait_until;
use serde_json::{Value, json};

use super::fake_vm::RESET;
use super::host::{Host, PATIENCE, problem, spec};

/// A VM with a kernel, which the fake VM process doesn't look for.
fn create(host: &Host, words: &str) -> Vm {
    let mut spec = spec("web", "");
    spec["boot"] = json!({ "kind": "kernel", "kernel": "/vmlinuz", "cmdline": words });
    host.post("/v1/vms", &spec).unwrap()
}

/// Lets the guest reset itself; no answer comes from a process that has ended.
fn reset(host: &Host) {
    let _ = host.call(host.client.post_bytes("/v1/vms/web/console", RESET.to_vec()));
}

fn wait_stopped(host: &Host) -> Vm {
    wait_until("the guest is off", PATIENCE, || host.vm("web").unwrap().state == VmState::Stopped);
    host.vm("web").unwrap()
}

/// Waits until the guest runs in another process than that.
fn wait_anew(host: &Host, pid: Option<u32>) -> Vm {
    wait_until("the guest boots anew", PATIENCE, || {
        let vm = host.vm("web").unwrap();
        vm.state == VmState::Running && vm.pid.is_some() && vm.pid != pid
    });
    host.vm("web").unwrap()
}

#[test]
fn a_pressed_power_button_ends_a_guest_that_heeds_it() {
    let host = Host::new("a");
    create(&host, "");
    let pressed: Result<Vm, _> = host.post("/v1/vms/web/shutdown", &());
    // The fake guest is off before it has answered.
    if let Err(error) = pressed {
        assert_eq!(problem::<Vm>(Err(error)).code, "vm_process_unreachable");
    }
    assert_eq!(wait_stopped(&host).error.unwrap(), "shutdown");
    assert_eq!(problem(host.post::<Value>("/v1/vms/web/shutdown", &())).code, "wrong_vm_state");
}

#[test]
fn a_power_button_is_refused_where_nobody_could_press_it() {
    let host = Host::new("a");
    assert_eq!(problem(host.post::<Value>("/v1/vms/web/shutdown", &())).code, "vm_not_found");
    create(&host, "");
    let _: Vm = host.post("/v1/vms/web/pause", &()).unwrap();
    let refused = problem(host.post::<Value>("/v1/vms/web/shutdown", &()));
    assert_eq!((refused.status, refused.code.as_str()), (409, "wrong_vm_state"));
    host.create("workload", "").unwrap();
    let refused = problem(host.post::<Value>("/v1/vms/workload/shutdown", &()));
    assert_eq!((refused.status, refused.code.as_str()), (409, "guest_without_acpi"));
}

#[test]
fn a_guest_that_resets_itself_boots_anew_as_the_same_vm() {
    let host = Host::new("a");
    let made = create(&host, "");
    reset(&host);
    let anew = wait_anew(&host, made.pid);
    let kept = |vm: &Vm| (vm.id.clone(), vm.name.clone(), vm.spec.clone(), vm.created_unix_ms);
    assert_eq!((kept(&anew), anew.error), (kept(&made), None));
    // What ended the process before is not taken for the reason of this one's end.
    host.kill_vm("web");
    host.wait_gone("web");
    let dead = host.vm("web").unwrap();
    assert_eq!(dead.state, VmState::Failed);
    assert!(dead.error.as_ref().unwrap().contains("SIGKILL"), "{dead:?}");
}

#[test]
fn a_guest_that_resets_itself_while_no_daemon_runs_boots_when_one_does() {
    let mut host = Host::new("a");
    let made = create(&host, "");
    let socket = host.config.state_dir.join("vms").join(&made.id).join("control.sock");
    let process = host.daemon.as_ref().unwrap().vm("web").unwrap().process().unwrap();
    host.stop();
    host.call(async {
        use migrated_control::{ControlClient, Request};
        let (client, _events) = ControlClient::connect(&socket, PATIENCE).await.unwrap();
        let _ = client.perform(Request::ConsoleInput { bytes: RESET.to_vec() }).await;
    });
    wait_until("the guest has reset itself", PATIENCE, || !process.is_alive());
    host.start();
    let anew = wait_anew(&host, made.pid);
    assert_eq!((anew.id, anew.name), (made.id, made.name));
}

#[test]
fn a_guest_that_only_resets_itself_is_left_off() {
    let mut host = Host::new("a");
    create(&host, "loops");
    reset(&host);
    let off = wait_stopped(&host);
    assert!(off.error.as_ref().unwrap().contains("3 times within 10 s"), "{off:?}");
    host.stop();
    host.start();
    assert_eq!(host.vm("web").unwrap().error, off.error);
    host.assert_state("web", VmState::Stopped);
    host.call(host.client.delete("/v1/vms/web")).unwrap();
    assert_eq!(problem(host.vm("web")).code, "vm_not_found");
}

#[test]
fn a_guest_whose_kernel_is_not_here_stays_off_and_says_so() {
    let mut host = Host::new("a");
    create(&host, "homeless");
    reset(&host);
    assert_eq!(wait_stopped(&host).error.unwrap(), "file_unreadable");
    host.stop();
    host.start();
    assert_eq!(wait_stopped(&host).error.unwrap(), "file_unreadable");
}

#[test]
fn a_reset_ends_a_migration_and_the_guest_stays_movable() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let made = create(&a, "endless");
    let begun = a.migrate("web", &b);
    a.wait(&begun.id, &[MigrationState::Precopy]);
    reset(&a);
    let ended = a.wait(&begun.id, &[MigrationState::Failed]);
    assert_eq!(ended.error.unwrap().code, "guest_reset");
    let anew = wait_anew(&a, made.pid);
    assert_eq!((anew.id, anew.migration), (made.id, None));
    b.wait(&begun.id, &[MigrationState::Failed, MigrationState::Cancelled]);
    assert_eq!(problem(b.vm("web")).code, "vm_not_found");
    let again = a.migrate("web", &b);
    a.wait(&again.id, &[MigrationState::Precopy]);
}

#[test]
fn a_guest_that_came_from_elsewhere_boots_where_it_is() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let made = create(&a, "");
    let moved = a.migrate("web", &b);
    a.wait(&moved.id, &[MigrationState::Completed]);
    b.wait(&moved.id, &[MigrationState::Completed]);
    let there = b.vm("web").unwrap();
    reset(&b);
    let anew = wait_anew(&b, there.pid);
    assert_eq!((anew.id, anew.cpu.unwrap().baseline), (made.id, there.cpu.unwrap().baseline));
}
