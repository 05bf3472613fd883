use super::*;
use crate::{
    config::Place,
    disk::{Defaults, Disk, Kind},
};
use std::collections::BTreeSet;
use vscsi_target::reactor::Postboxes;

fn units(targets: &[&str]) -> (Units, Exporter) {
    let model = Model::new(Postboxes::new(1).unwrap());
    let exporter = Exporter::new(Arc::clone(&model), Place::Nowhere);
    let mut ports = HashMap::new();
    for name in targets {
        let target = model.add_target(name).unwrap();
        let disk = Disk::parse("1M,lun=3", Kind::Ram, Defaults::default()).unwrap();
        exporter.disk(&target, &disk, &BTreeSet::new()).unwrap();
        ports.insert((*name).to_owned(), exporter.tcmu_port(&target));
    }
    (Units { model, ports, nexuses: Mutex::default() }, exporter)
}

fn name(config: &str) -> DeviceName {
    DeviceName::parse(&format!("tcm-user/0/d/{config}")).unwrap()
}

fn attach(units: &Units, config: &str) -> Result<Attachment, Refused> {
    let name = name(config);
    units.attach(&name, &name.reference().unwrap())
}

#[test]
fn a_device_leads_to_the_lun_it_names() {
    let (units, _exporter) = units(&["iqn.2026-11.org.x:a", "iqn.2026-11.org.x:b"]);
    let to = attach(&units, "vscsi/iqn.2026-11.org.x:b/3").unwrap();
    assert_eq!((to.nexus.info.target.name.as_str(), to.lun), ("iqn.2026-11.org.x:b", 3));
    // It is the same initiator when it comes again, and while it is there the same nexus.
    let again = attach(&units, "vscsi/iqn.2026-11.org.x:b/3").unwrap();
    assert!(Arc::ptr_eq(&to.nexus, &again.nexus));
    let identity = to.nexus.info.identity.clone();
    drop((to, again));
    let later = attach(&units, "vscsi/iqn.2026-11.org.x:b/3").unwrap();
    assert_eq!(later.nexus.info.identity, identity);
}

#[test]
fn what_is_not_there_is_refused() {
    let (units, _exporter) = units(&["iqn.2026-11.org.x:a", "iqn.2026-11.org.x:b"]);
    let errno = |config| attach(&units, config).unwrap_err().errno;
    assert_eq!(errno("vscsi/iqn.2026-11.org.x:c/3"), Errno::ENOENT);
    assert_eq!(errno("vscsi/iqn.2026-11.org.x:a/4"), Errno::ENOENT);
    assert_eq!(errno("vscsi/3"), Errno::EINVAL);
    assert_eq!(errno("vscsi/iqn.2026-11.org.x:a/x"), Errno::EINVAL);
}

#[test]
fn a_target_is_known_by_what_is_behind_its_colon() {
    let (units, _exporter) = units(&["iqn.2026-11.org.x:a", "iqn.2026-11.org.y:b:1", "eui.0"]);
    assert_eq!(
        attach(&units, "vscsi/b:1/3").unwrap().nexus.info.target.name,
        "iqn.2026-11.org.y:b:1"
    );
    assert_eq!(attach(&units, "vscsi/a/3").unwrap().nexus.info.target.name, "iqn.2026-11.org.x:a");
}

#[test]
fn what_is_behind_two_colons_names_neither() {
    let (units, _exporter) = units(&["iqn.2026-11.org.x:a", "iqn.2026-11.org.y:a"]);
    assert_eq!(attach(&units, "vscsi/a/3").unwrap_err().errno, Errno::EINVAL);
}

#[test]
fn the_only_target_need_not_be_named() {
    let (units, _exporter) = units(&["iqn.2026-11.org.x:a"]);
    assert_eq!(attach(&units, "vscsi/3").unwrap().lun, 3);
}

#[test]
fn a_size_grows_the_lun_and_never_shrinks_it() {
    let (units, _exporter) = units(&["iqn.2026-11.org.x:a"]);
    let to = attach(&units, "vscsi/3").unwrap();
    let change = |change: &Change| units.change(&name("vscsi/3"), &to, change);
    change(&Change::Size(1 << 20)).unwrap();
    change(&Change::Size(3 << 20)).unwrap();
    let lu = unit(&to.nexus.info.target, 3).unwrap();
    assert_eq!(lu.backend.len(), 3 << 20);
    assert_eq!(change(&Change::Size(1 << 20)).unwrap_err().errno, Errno::EINVAL);
    assert_eq!(change(&Change::Size((3 << 20) + 1)).unwrap_err().errno, Errno::EINVAL);
}

#[test]
fn a_cache_that_is_not_there_and_another_lun_are_refused() {
    let (units, _exporter) = units(&["iqn.2026-11.org.x:a"]);
    let to = attach(&units, "vscsi/3").unwrap();
    let change = |change: Change| units.change(&name("vscsi/3"), &to, &change);
    change(Change::WriteCache(false)).unwrap();
    let error = change(Change::WriteCache(true)).unwrap_err();
    assert_eq!(error.errno, Errno::EOPNOTSUPP);
    change(Change::Config("vscsi/iqn.2026-11.org.x:a/3\n".to_owned())).unwrap();
    let error = change(Change::Config("vscsi/4".to_owned())).unwrap_err();
    assert_eq!(error.errno, Errno::EOPNOTSUPP);
    let error = change(Change::Config("qcow//x".to_owned())).unwrap_err();
    assert_eq!(error.errno, Errno::EINVAL);
}
