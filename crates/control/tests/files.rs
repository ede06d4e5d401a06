//! What a daemon and a VM process leave for each other on disk.

use migrated_control::{BootSource, ExitReport, VmDir, VmSpec, VmStart, VmState, read_epoch, record_epoch};

#[test]
fn an_epoch_is_recorded_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("epoch");
    assert_eq!(read_epoch(&path).unwrap(), None);
    record_epoch(&path, 7).unwrap();
    assert_eq!(read_epoch(&path).unwrap(), Some(7));
    std::fs::write(&path, "").unwrap();
    assert_eq!(read_epoch(&path).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    assert!(record_epoch(&dir.path().join("missing/epoch"), 7).is_err());
}

#[test]
fn a_full_disk_refuses_the_epoch_and_leaves_no_record() {
    // /dev/full answers every write as a full disk does; the temporary file is put there.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("epoch");
    std::os::unix::fs::symlink("/dev/full", dir.path().join("epoch.new")).unwrap();
    let error = record_epoch(&path, 7).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!(read_epoch(&path).unwrap(), None);
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
