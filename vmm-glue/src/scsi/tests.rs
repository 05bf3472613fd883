use super::*;
use libsrp::{SenseData, Tag};

fn request(layout: Layout) -> Vec<u8> {
    let mut bytes = vec![1, 7, 0x40, 5, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0];
    if layout.pi {
        bytes.extend([8, 0, 0, 0, 0, 1, 0, 0]);
    }
    bytes.push(0x28);
    bytes.resize(layout.request_len(), 0);
    bytes
}

#[test]
fn a_command_as_linux_sends_it() {
    let bytes = request(Layout::DEFAULT);
    assert_eq!(bytes.len(), 51);
    let parsed = Layout::DEFAULT.request(&bytes).unwrap();
    assert_eq!(parsed.address, Some(Address { target: 7, lun: Lun::from_number(5).unwrap() }));
    assert_eq!(parsed.tag, 0x0807_0605_0403_0201);
    assert_eq!(
        (parsed.attribute, parsed.cdb[0], parsed.cdb.len()),
        (TaskAttribute::Simple, 0x28, 32)
    );
}

#[test]
fn protection_fields_stand_before_the_cdb() {
    let layout = Layout { pi: true, ..Layout::DEFAULT };
    let bytes = request(layout);
    let parsed = layout.request(&bytes).unwrap();
    assert_eq!((bytes.len(), parsed.pi_out, parsed.pi_in, parsed.cdb[0]), (59, 8, 256, 0x28));
}

#[test]
fn a_short_request_is_none() {
    for pi in [false, true] {
        let layout = Layout { pi, ..Layout::DEFAULT };
        let bytes = request(layout);
        assert!((0..bytes.len()).all(|len| layout.request(&bytes[..len]).is_none()));
    }
}

#[test]
fn addresses_in_every_encoding_drivers_use() {
    let number = |bytes| Address::parse(bytes).and_then(|a| Some((a.target, a.lun.number()?)));
    assert_eq!(number([1, 0, 0x40, 0, 0, 0, 0, 0]), Some((0, 0)));
    assert_eq!(number([1, 255, 0, 9, 0, 0, 0, 0]), Some((255, 9)));
    assert_eq!(number([1, 1, 0x7F, 0xFF, 0, 0, 0, 0]), Some((1, 16383)));
    assert_eq!(number([0, 1, 0, 0, 0, 0, 0, 0]), None);
    let well_known = Address::parse([0xC1, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(well_known.lun, Lun::REPORT_LUNS);
}

#[test]
fn good_is_twelve_zeroes_but_for_the_residual() {
    let mut response = Response::good(Tag::default());
    response.data_in = Residual::Under(0x0102);
    let bytes = ResponseBytes::of(&response, &Layout::DEFAULT);
    assert_eq!(bytes.as_bytes(), [0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn sense_data_is_cut_to_the_size_the_driver_wants() {
    let mut response = Response::good(Tag::default());
    response.status = Status::CHECK_CONDITION;
    response.sense = SenseData::new(&[0x70; 18]);
    let whole = ResponseBytes::of(&response, &Layout::DEFAULT);
    assert_eq!((whole.as_bytes().len(), whole.as_bytes()[0], whole.as_bytes()[10]), (30, 18, 2));
    let cut = ResponseBytes::of(&response, &Layout { sense_size: 8, ..Layout::DEFAULT });
    assert_eq!((cut.as_bytes().len(), cut.as_bytes()[0]), (20, 8));
}

#[test]
fn more_data_than_room_is_an_overrun() {
    let mut response = Response::good(Tag::default());
    response.data_in = Residual::Over(512);
    let bytes = ResponseBytes::of(&response, &Layout::DEFAULT);
    assert_eq!((bytes.as_bytes()[11], bytes.as_bytes()[5]), (code::OVERRUN, 2));
}
