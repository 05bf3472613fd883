use super::*;
use crate::{
    backend::{Backend, File, Null, file::FileOptions},
    model::{Attention, TargetPort},
    testing::{Fixture, sense},
};

fn fixture() -> Fixture {
    Fixture::over(Backend::Null(Null::new(1 << 30, 512)))
}

fn page(page: u8) -> Vec<u8> {
    fixture().call(&[0x12, 1, page, 0xFF, 0xFF, 0], &[]).unwrap()
}

#[test]
fn standard_data_is_96_bytes_as_in_spc() {
    let data = fixture().call(&[0x12, 0, 0, 0, 96, 0], &[]).unwrap();
    let mut expected = vec![0x00, 0x00, 0x06, 0x32, 91, 0x10, 0x00, 0x02];
    expected.extend(b"VSCSI   VIRTUAL-DISK    0001");
    expected.resize(58, 0);
    expected.extend([0x00, 0xA0, 0x09, 0x60, 0x05, 0xC0, 0x04, 0x60, 0x06, 0x00, 0x04, 0xC0]);
    expected.resize(96, 0);
    assert_eq!(data, expected);
}

#[test]
fn removable_unit_sets_rmb() {
    let backend = Backend::Null(Null::new(1 << 20, 512));
    let mut fixture = Fixture::with(backend, |config| config.removable = true);
    assert_eq!(fixture.call(&[0x12, 0, 0, 0, 96, 0], &[]).unwrap()[1], 0x80);
}

#[test]
fn two_ports_set_multip() {
    let mut fixture = fixture();
    fixture.target.add_port(1, 5, "iqn.2026-11.test:t,t,0x0002".into());
    assert_eq!(fixture.call(&[0x12, 0, 0, 0, 96, 0], &[]).unwrap()[6], 0x10);
}

#[test]
fn page_code_without_evpd_is_an_invalid_field() {
    assert_eq!(sense(fixture().call(&[0x12, 0, 1, 0, 96, 0], &[])), Sense::cdb_byte(2));
}

#[test]
fn unsupported_page_is_an_invalid_field() {
    assert_eq!(sense(fixture().call(&[0x12, 1, 0x89, 0, 96, 0], &[])), Sense::cdb_byte(2));
}

#[test]
fn every_supported_page_can_be_read_and_its_length_is_right() {
    let pages = page(0x00);
    assert_eq!(pages[..4], [0, 0, 0, 9]);
    assert!(pages[4..].is_sorted());
    for &code in &pages[4..] {
        let data = page(code);
        assert_eq!(data[..2], [0, code]);
        assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])), data.len() - 4);
    }
}

#[test]
fn serial_number_is_the_identity_s() {
    assert_eq!(page(0x80), b"\0\x80\0\x06SN0001");
}

#[test]
fn identification_names_unit_port_and_target() {
    let identity = Identity::derive("seed", Some("SN0001"));
    let mut expected = vec![0x01, 0x03, 0, 8];
    expected.extend(identity.naa.to_be_bytes());
    expected.extend([0x01, 0x02, 0, 8]);
    expected.extend(identity.eui.to_be_bytes());
    expected.extend([0x03, 0x08, 0, 24]);
    expected.extend(format!("naa.{:016X}\0\0\0\0", identity.naa).bytes());
    expected.extend([0x02, 0x01, 0, 30]);
    expected.extend(b"VSCSI   VIRTUAL-DISK    SN0001");
    expected.extend([0x51, 0x94, 0, 4, 0, 0, 0, 1]);
    expected.extend([0x51, 0x95, 0, 4, 0, 0, 0, 1]);
    expected.extend([0x53, 0x98, 0, 28]);
    expected.extend(b"iqn.2026-11.test:t,t,0x0001\0");
    expected.extend([0x53, 0xA8, 0, 20]);
    expected.extend(b"iqn.2026-11.test:t\0\0");
    assert_eq!(page(0x83)[4..], expected);
}

#[test]
fn srp_port_is_named_by_its_identifier() {
    let mut fixture = fixture();
    fixture.target.add_port(1, 4, "eui.00000000000000AA02BB000000000001".into());
    let data = fixture.call(&[0x12, 1, 0x88, 0xFF, 0xFF, 0], &[]).unwrap();
    let mut expected = vec![0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 20, 0x41, 0x92, 0, 16];
    expected.extend([0, 0, 0, 0, 0, 0, 0, 0xAA, 0x02, 0xBB, 0, 0, 0, 0, 0, 1]);
    assert_eq!(data[data.len() - 32..], expected);
}

#[test]
fn identifiers_that_are_no_32_digits_name_nothing() {
    for name in ["eui.02BB000000000001", "02BB", "eui.+0000000000000AA02BB000000000001"] {
        let port = TargetPort { relative_id: 1, group: 1, protocol: 4, name: name.into() };
        assert_eq!(port.identifier(), None, "{name}");
    }
}

#[test]
fn scsi_ports_page_lists_every_port() {
    let mut expected = vec![0, 0x88, 0, 44, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 32];
    expected.extend([0x53, 0x98, 0, 28]);
    expected.extend(b"iqn.2026-11.test:t,t,0x0001\0");
    assert_eq!(page(0x88), expected);
}

#[test]
fn block_limits_are_in_blocks() {
    let mut expected = vec![0, 0xB0, 0, 60, 1, 255, 0, 8];
    expected.extend([0, 0, 0x40, 0]); // 8 MiB
    expected.extend([0, 0, 1, 0]); // 128 KiB
    expected.extend([0; 4]);
    expected.extend([0xFF; 4]);
    expected.extend([0, 0, 1, 0]);
    expected.extend([0, 0, 0, 8]);
    expected.extend([0x80, 0, 0, 0]);
    expected.extend([0, 0, 0, 0, 0, 0, 0xFF, 0xFF]);
    expected.extend([0, 0, 8, 0]); // 1 MiB
    expected.extend([0, 0, 0, 1, 0, 0, 0, 1]);
    expected.extend([0; 8]);
    assert_eq!(page(0xB0), expected);
}

#[test]
fn a_file_does_not_promise_that_writes_are_never_torn() {
    let path = std::env::temp_dir().join(format!("vscsi-untorn-{}", std::process::id()));
    std::fs::write(&path, [0; 4096]).unwrap();
    let options =
        FileOptions { path: path.clone(), block_size: 512, read_only: false, direct: false };
    let file = File::open(&options);
    std::fs::remove_file(&path).unwrap();
    let mut fixture = Fixture::over(Backend::File(file.unwrap()));
    let page = fixture.call(&[0x12, 1, 0xB0, 0xFF, 0xFF, 0], &[]).unwrap();
    assert_eq!(page[44..], [0; 20]);
}

#[test]
fn extended_inquiry_data_is_60_bytes_after_the_header() {
    let mut expected = vec![0, 0x86, 0, 60, 0, 0x07, 0, 0x01, 0, 0, 0, 0, 0, 96];
    expected.resize(64, 0);
    assert_eq!(page(0x86), expected);
}

#[test]
fn thin_unit_says_so() {
    assert_eq!(page(0xB2), [0, 0xB2, 0, 4, 0, 0xE4, 2, 0]);
}

#[test]
fn medium_does_not_rotate_and_can_be_read_after_block_erase() {
    assert_eq!(page(0xB1)[..8], [0, 0xB1, 0, 60, 0, 1, 0, 0x40]);
}

#[test]
fn mode_pages_are_shared() {
    assert_eq!(page(0x87), [0, 0x87, 0, 4, 0x3F, 0xFF, 0, 0]);
}

#[test]
fn absent_lun_has_qualifier_three_and_a_vendor() {
    let mut reply = Vec::new();
    absent(&[0x12, 0, 0, 0, 96, 0], &fixture().target, 1, &mut reply).unwrap();
    assert_eq!(reply[0], 0x7F);
    assert_eq!(&reply[8..16], b"VSCSI   ");
    assert_eq!(reply.len(), 96);
}

#[test]
fn absent_lun_has_only_the_pages_that_need_no_unit() {
    let fixture = fixture();
    let mut reply = Vec::new();
    absent(&[0x12, 1, 0, 0, 96, 0], &fixture.target, 1, &mut reply).unwrap();
    assert_eq!(reply, [0x7F, 0, 0, 2, 0x00, 0x83]);
    let result = absent(&[0x12, 1, 0x80, 0, 96, 0], &fixture.target, 1, &mut reply);
    assert_eq!(result, Err(Sense::cdb_byte(2).into()));
}

#[test]
fn well_known_unit_has_its_own_type() {
    let mut reply = Vec::new();
    well_known(&[0x12, 0, 0, 0, 96, 0], &fixture().target, 1, &mut reply).unwrap();
    assert_eq!(reply[0], 0x1E);
}

#[test]
fn report_luns_lists_the_nexus_s_units_and_clears_the_inventory_attention() {
    let mut fixture = fixture();
    let cdb = [0xA0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
    fixture.target.map(300, fixture.lu.clone(), None).unwrap();
    let itl = fixture.nexus.table().at(0).unwrap().clone();
    itl.take_attention();
    assert_eq!(itl.peek_attention().0, Some(Attention::LUNS_CHANGED));
    let luns = fixture.call(&cdb, &[]).unwrap();
    let mut expected = vec![0, 0, 0, 16, 0, 0, 0, 0];
    expected.extend([0; 8]);
    expected.extend([0x41, 0x2C, 0, 0, 0, 0, 0, 0]);
    assert_eq!(luns, expected);
    assert_eq!(itl.peek_attention().0, None);
}

#[test]
fn select_report_chooses_well_known_units() {
    let mut fixture = fixture();
    let mut luns = |select| {
        let cdb = [0xA0, 0, select, 0, 0, 0, 0, 0, 4, 0, 0, 0];
        fixture.call(&cdb, &[]).map(|data| (data[3], data.get(8).copied()))
    };
    assert_eq!(luns(0x01), Ok((8, Some(0xC1))));
    assert_eq!(luns(0x02), Ok((16, Some(0xC1))));
    assert_eq!(luns(0x10), Ok((0, None)));
    assert_eq!(luns(0x11), Ok((8, Some(0))));
    assert_eq!(luns(0x12), Ok((0, None)));
    assert_eq!(luns(0x13), Err(Sense::cdb_byte(2).into()));
}

#[test]
fn request_sense_reports_attentions_then_readiness_then_nothing() {
    let mut fixture = fixture();
    let mut codes = |descriptor: u8| {
        let data = fixture.call(&[0x03, descriptor, 0, 0, 252, 0], &[]).unwrap();
        let at = if descriptor == 0 { (2, 12, 13) } else { (1, 2, 3) };
        (data[0], data[at.0], data[at.1], data[at.2])
    };
    assert_eq!(codes(0), (0x70, 6, 0x29, 0));
    assert_eq!(codes(1), (0x72, 0, 0, 0));
    fixture.lu.update(|state| state.stopped = true);
    let data = fixture.call(&[0x03, 0, 0, 0, 252, 0], &[]).unwrap();
    assert_eq!((data[2], data[12], data[13]), (2, 4, 2));
}

#[test]
fn request_sense_shows_progress() {
    let mut fixture = fixture();
    fixture.nexus.table().at(0).unwrap().take_attention();
    fixture.lu.update(|state| state.busy = Some(Sense::FORMATTING.with_progress(0x1234)));
    let data = fixture.call(&[0x03, 0, 0, 0, 252, 0], &[]).unwrap();
    assert_eq!(data[12..18], [4, 4, 0, 0x80, 0x12, 0x34]);
}

#[test]
fn port_groups_are_active_and_optimized_in_both_formats() {
    let mut fixture = fixture();
    let group = [0x00, 0x01, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1];
    let short = fixture.call(&[0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], &[]).unwrap();
    assert_eq!(short, [&[0, 0, 0, 12], &group[..]].concat());
    let long = fixture.call(&[0xA3, 0x2A, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], &[]).unwrap();
    assert_eq!(long, [&[0, 0, 0, 16, 0x10, 0, 0, 0], &group[..]].concat());
}

#[test]
fn unknown_port_group_format_is_an_invalid_field() {
    let result = fixture().call(&[0xA3, 0x4A, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], &[]);
    assert_eq!(sense(result), Sense::cdb_bit(1, 7));
}
