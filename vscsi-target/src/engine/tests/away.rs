//! What a logical unit answers while another process has its image.

use super::*;
use crate::backend::{File, FileOptions};
use std::{fs, process};

struct Image(std::path::PathBuf);

impl Image {
    fn rig(&self) -> Rig {
        let options = FileOptions {
            path: self.0.clone(),
            block_size: BLOCK as u32,
            read_only: false,
            direct: false,
        };
        Rig::over(Backend::File(File::open_for_handover(&options).unwrap()))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn image(name: &str) -> Image {
    let path = std::env::temp_dir().join(format!("vscsi-away-{name}-{}", process::id()));
    fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    Image(path)
}

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE: [u8; 10] = [0x2A, 0, 0, 0, 0, 0, 0, 0, 1, 0];

#[test]
fn nothing_touches_medium_or_state_before_it_is_acquired() {
    let image = image("first");
    let mut rig = image.rig();
    let mut nexus = rig.nexus("iqn.2026-11.example:a");
    let block = [7; BLOCK];
    let register = [[0; 8], [1; 8], [0; 8]].concat();
    let refused: [(&[u8], &[u8], u32); 7] = [
        (&[0; 6], &[], 0),
        (&READ, &[], BLOCK as u32),
        (&WRITE, &block, 0),
        (&[0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0], &register, 0),
        (&[0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0], &[], 8),
        (&[0x16, 0, 0, 0, 0, 0], &[], 0),
        (&[0x1E, 0, 0, 0, 1, 0], &[], 0),
    ];
    for (cdb, out, room) in refused {
        let (response, _) = rig.call(&mut nexus, cdb, &How { out, room, ..How::default() });
        assert_eq!(response.status, Status::CHECK_CONDITION, "{cdb:x?}");
        let expected = Sense::BECOMING_READY.encode(false);
        assert_eq!(response.sense.as_bytes(), expected.as_bytes(), "{cdb:x?}");
    }
    let inquiry = [0x12, 0, 0, 0, 36, 0];
    let (response, data) = rig.call(&mut nexus, &inquiry, &How { room: 36, ..How::default() });
    assert_eq!((response.status, data.len()), (Status::GOOD, 36));
    assert_eq!(fs::read(&image.0).unwrap(), vec![0; 1 << 20]);

    rig.lu.acquire().unwrap();
    // It was not ready, and its state is as after a power on.
    let (response, _) = rig.call(&mut nexus, &[0; 6], &How::default());
    assert_eq!(response.status, Status::CHECK_CONDITION);
    let (response, _) = rig.call(&mut nexus, &WRITE, &How { out: &block, ..How::default() });
    assert_eq!(response.status, Status::GOOD);
    rig.lu.release().unwrap();
    assert_eq!(fs::read(&image.0).unwrap()[..BLOCK], block);
}

#[test]
fn a_write_whose_data_comes_after_the_release_is_not_done() {
    let image = image("late");
    let mut rig = image.rig();
    rig.lu.acquire().unwrap();
    let mut nexus = rig.nexus("iqn.2026-11.example:a");
    let owner = rig.owner();
    let how = How { out: &[7; BLOCK], ..How::default() };
    let command = how.command(owner.cookie, &WRITE);
    let Submitted::NeedsData(DataOut { token, mut buffer, len }) =
        rig.engine.submit(&mut nexus, &command, Memory::Pool, owner)
    else {
        panic!("it asks for its data");
    };
    buffer.bytes_mut()[..len].fill(7);
    rig.lu.release().unwrap();
    rig.engine.data_arrived(token, buffer);
    let (_, response, _) = rig.wait(owner.cookie);
    assert_eq!(response.status, Status::CHECK_CONDITION);
    assert_eq!(fs::read(&image.0).unwrap(), vec![0; 1 << 20]);
}
