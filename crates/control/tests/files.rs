//! What a daemon and a VM process leave for each other on disk.

use migrated_control::{
    BootSource, EpochRecord, EpochState, ExitReport, VmDir, VmSpec, VmStart, VmState, read_epoch,
};

#[test]
fn an_epoch_is_armed_once_and_then_says_what_became_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("epoch");
    assert_eq!(read_epoch(&path).unwrap(), None);
    let record = EpochRecord::arm(&path, 7).unwrap();
    assert_eq!(read_epoch(&path).unwrap(), Some((7, EpochState::Armed)));
    assert_eq!(record.commit(8).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    record.commit(7).unwrap();
    assert_eq!(read_epoch(&path).unwrap(), Some((7, EpochState::Committed)));
    record.never_ran(7).unwrap();
    assert_eq!(read_epoch(&path).unwrap(), Some((7, EpochState::NeverRan)));
    assert!(EpochRecord::arm(&path, 7).is_err(), "a record that is there is not replaced");
    std::fs::write(&path, "").unwrap();
    assert_eq!(read_epoch(&path).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
}

#[test]
fn an_armed_epoch_of_another_boot_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("epoch");
    std::fs::write(&path, "armed     7 00000000-0000-0000-0000-000000000000\n").unwrap();
    assert_eq!(read_epoch(&path).unwrap(), Some((7, EpochState::Unknown)));
    std::fs::write(&path, "committed 7 00000000-0000-0000-0000-000000000000\n").unwrap();
    assert_eq!(read_epoch(&path).unwrap(), Some((7, EpochState::Committed)));
}

#[test]
fn start_and_exit_come_back_as_they_were_written() {
    let root = tempfile::tempdir().unwrap();
    let dir = VmDir::new(root.path());
    let spec = VmSpec {
        name: "a".into(),
        memory_bytes: 64 << 20,
        vcpus: 1,
        boot: BootSource::Workload { cmdline: "hot=16M".into() },
        backing: migrated_control::MemoryBacking::Memfd,
        prefault: false,
    };
    dir.write_start(&VmStart::Boot(spec.clone())).unwrap();
    assert_eq!(dir.read_start().unwrap().spec(), &spec);
    assert_eq!(dir.read_exit(), None);
    let report = ExitReport {
        state: VmState::Stopped,
        code: "shutdown".into(),
        message: "asked".into(),
        record: None,
    };
    dir.write_exit(&report).unwrap();
    assert_eq!(dir.read_exit(), Some(report));
}
