//! The engine over a RAM logical unit, driven as a transport drives it.

use super::*;
use crate::{
    backend::{Backend, Mem},
    model::{
        Attention, Identity, LogicalUnit, LuConfig, Nexus, NexusView, Target,
        reservation::{NexusId, Reservations, TransportId},
    },
    reactor::{EndpointId, Postboxes, pool::Pool, ring::Ring, workers::Workers},
    sbc,
    sense::Sense,
    spc::mode::Modes,
};
use libsrp::{
    Command, Lun, Residual, Response, ResponseCode, Status, Tag, TaskAttribute, TaskFunction,
    TaskManagement,
};

mod atomic;
mod away;
mod deadline;
mod nvme;
mod races;
mod random;

const BLOCK: usize = 512;

struct Rig {
    engine: Engine,
    target: Arc<Target>,
    lu: Arc<LogicalUnit>,
    mail: Vec<Mail>,
    done: Vec<Completion>,
    cookie: u64,
}

impl Rig {
    fn new() -> Self {
        Self::over(Backend::Mem(Mem::new(1 << 20, BLOCK as u32).unwrap()))
    }

    fn over(backend: Backend) -> Self {
        let postboxes = Postboxes::new(1).unwrap();
        let model = Model::new(Arc::clone(&postboxes));
        let target = model.add_target("iqn.2026-11.example:t").unwrap();
        target.add_port(1, 5, "iqn.2026-11.example:t,t,0x0001".to_owned());
        let config = LuConfig {
            identity: Identity::derive("engine tests", None),
            removable: false,
            read_only: false,
            state_dir: None,
        };
        let modes = Modes::for_backend(backend.properties(), None);
        let lu = LogicalUnit::new(config, backend, Reservations::default(), modes, postboxes);
        target.map(0, Arc::clone(&lu), None).unwrap();
        let workers = Arc::new(Workers::new(2));
        let engine = Engine::new(model, 0, Pool::new(16 << 20), Ring::new(64), workers);
        Self { engine, target, lu, mail: Vec::new(), done: Vec::new(), cookie: 0 }
    }

    fn nexus(&self, name: &str) -> NexusView {
        let identity = NexusId::new(TransportId::iscsi(name, [0; 6]).unwrap(), 1);
        let nexus = Nexus::establish(Arc::clone(&self.target), 1, identity, name.to_owned());
        let mut view = NexusView::new(nexus);
        let itl = Arc::clone(view.find(Lun::default()).unwrap());
        while itl.take_attention().is_some() {}
        view
    }

    fn owner(&mut self) -> Owner {
        self.cookie += 1;
        Owner { endpoint: EndpointId { index: 0, generation: 0 }, cookie: self.cookie }
    }

    /// Submits without waiting. Data-Out that is asked for is brought at once.
    fn submit(&mut self, nexus: &mut NexusView, cdb: &[u8], how: &How<'_>) -> u64 {
        let owner = self.owner();
        let command = how.command(owner.cookie, cdb);
        match self.engine.submit(nexus, &command, Memory::Pool, owner) {
            Submitted::Accepted => {}
            Submitted::NeedsData(DataOut { token, mut buffer, len }) => {
                buffer.bytes_mut()[..len].copy_from_slice(&how.out[..len]);
                self.engine.data_arrived(token, buffer);
            }
        }
        owner.cookie
    }

    fn wait(&mut self, cookie: u64) -> (Outcome, Response, Vec<u8>) {
        for _ in 0..10_000 {
            self.engine.model.postboxes.take(0, &mut self.mail);
            self.engine.turn(&mut self.mail);
            let mut fresh = Vec::new();
            self.engine.completions(&mut fresh);
            self.done.append(&mut fresh);
            if let Some(at) = self.done.iter().position(|done| done.owner.cookie == cookie) {
                let done = self.done.remove(at);
                return (done.outcome, done.response, bytes(&done.data));
            }
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        panic!("no completion for {cookie}");
    }

    fn call(&mut self, nexus: &mut NexusView, cdb: &[u8], how: &How<'_>) -> (Response, Vec<u8>) {
        let cookie = self.submit(nexus, cdb, how);
        let (outcome, response, data) = self.wait(cookie);
        assert_eq!(outcome, Outcome::Respond);
        (response, data)
    }

    fn manage(&mut self, nexus: &mut NexusView, function: TaskFunction, managed: u64) -> u64 {
        let owner = self.owner();
        let request = TaskManagement {
            tag: Tag::from_u64(owner.cookie),
            lun: Lun::default(),
            function,
            managed: Tag::from_u64(managed),
        };
        self.engine.manage(nexus, &request, owner);
        owner.cookie
    }
}

#[derive(Default)]
struct How<'a> {
    out: &'a [u8],
    room: u32,
    attribute: TaskAttribute,
    lun: Lun,
}

impl How<'_> {
    fn command<'a>(&self, tag: u64, cdb: &'a [u8]) -> Command<'a> {
        Command {
            tag: Tag::from_u64(tag),
            lun: self.lun,
            attribute: self.attribute,
            priority: 0,
            cdb,
            data_out: self.out.len() as u32,
            data_in: self.room,
        }
    }
}

fn bytes(data: &DataIn) -> Vec<u8> {
    match data {
        DataIn::None | DataIn::Placed(_) => Vec::new(),
        DataIn::Buffer(buffer, len) => buffer.bytes()[..*len].to_vec(),
        DataIn::Lent(segment, _) => {
            let mut bytes = vec![0; segment.len];
            crate::reactor::sg::gather(&[*segment], &mut bytes);
            bytes
        }
    }
}

fn read_10(lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = [0; 10];
    cdb[0] = 0x28;
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

fn write_10(lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = read_10(lba, blocks);
    cdb[0] = 0x2A;
    cdb
}

fn compare_and_write(lba: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x89;
    cdb[9] = lba;
    cdb[13] = 1;
    cdb
}

const TUR: [u8; 6] = [0; 6];

fn room(room: u32) -> How<'static> {
    How { room, ..How::default() }
}

fn out(out: &[u8]) -> How<'_> {
    How { out, ..How::default() }
}

#[test]
fn what_was_written_is_read() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let data: Vec<u8> = (0..2 * BLOCK).map(|i| i as u8).collect();
    let (written, _) = rig.call(&mut nexus, &write_10(3, 2), &out(&data));
    assert_eq!((written.status, written.data_out), (Status::GOOD, Residual::None));
    let (read, back) = rig.call(&mut nexus, &read_10(3, 2), &room(1024));
    assert_eq!((read.status, read.data_in), (Status::GOOD, Residual::None));
    assert_eq!(back, data);
}

#[test]
fn residuals_say_what_the_initiator_expected_too_much_or_too_little() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let (response, data) = rig.call(&mut nexus, &read_10(0, 1), &room(4096));
    assert_eq!((response.data_in, data.len()), (Residual::Under(3584), 512));
    let (response, data) = rig.call(&mut nexus, &read_10(0, 8), &room(700));
    assert_eq!((response.data_in, data.len()), (Residual::Over(3396), 700));
    let (response, _) = rig.call(&mut nexus, &write_10(0, 8), &out(&[7; 1024]));
    assert_eq!((response.status, response.data_out), (Status::GOOD, Residual::Over(3072)));
    let (_, data) = rig.call(&mut nexus, &read_10(0, 4), &room(2048));
    assert_eq!((data[1023], data[1024]), (7, 0));
}

#[test]
fn more_data_than_compare_and_write_or_write_same_needs_is_an_invalid_field() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let compare_none = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let write_same_10 = [0x41, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    for cdb in [&compare_none[..], &write_same_10] {
        let (response, _) = rig.call(&mut nexus, cdb, &out(&[7; 2 * BLOCK]));
        assert_eq!(response.sense, Sense::INVALID_FIELD_IN_CDB.encode(false));
    }
    let (_, data) = rig.call(&mut nexus, &read_10(0, 1), &room(512));
    assert_eq!(data, [0; 512]);
}

#[test]
fn a_write_of_less_than_a_block_is_refused_and_says_how_much_is_missing() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    for cdb in [write_10(0, 1), [0x2E, 0x02, 0, 0, 0, 0, 0, 0, 1, 0]] {
        let (response, _) = rig.call(&mut nexus, &cdb, &out(&[7; 200]));
        assert_eq!(response.sense, sbc::SHORT_DATA.encode(false));
        assert_eq!(response.data_out, Residual::Over(312));
        let (_, data) = rig.call(&mut nexus, &read_10(0, 1), &room(512));
        assert_eq!(data, [0; 512]);
    }
}

#[test]
fn a_unit_attention_comes_before_anything_but_inquiry() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    rig.lu.establish(Attention::CAPACITY_CHANGED, None);
    let (inquiry, _) = rig.call(&mut nexus, &[0x12, 0, 0, 0, 36, 0], &room(36));
    assert_eq!(inquiry.status, Status::GOOD);
    let (first, _) = rig.call(&mut nexus, &TUR, &How::default());
    assert_eq!(first.sense, Attention::CAPACITY_CHANGED.sense().encode(false));
    let (second, _) = rig.call(&mut nexus, &TUR, &How::default());
    assert_eq!(second.status, Status::GOOD);
}

#[test]
fn an_absent_lun_answers_inquiry_and_report_luns_only() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let lun = Lun::from_number(9).unwrap();
    let how = How { lun, room: 96, ..How::default() };
    let (inquiry, data) = rig.call(&mut nexus, &[0x12, 0, 0, 0, 96, 0], &how);
    assert_eq!((inquiry.status, data[0]), (Status::GOOD, 0x7F));
    let how = How { lun, room: 16, ..How::default() };
    let (luns, data) = rig.call(&mut nexus, &[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], &how);
    assert_eq!((luns.status, &data[..4]), (Status::GOOD, &[0, 0, 0, 8][..]));
    let (tur, _) = rig.call(&mut nexus, &TUR, &How { lun, ..How::default() });
    assert_eq!(tur.sense, Sense::LUN_NOT_SUPPORTED.encode(false));
}

#[test]
fn compare_and_write_swaps_only_on_a_match() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let mut data = [0; 2 * BLOCK];
    data[BLOCK..].fill(5);
    let (swapped, _) = rig.call(&mut nexus, &compare_and_write(4), &out(&data));
    assert_eq!(swapped.status, Status::GOOD);
    let (missed, _) = rig.call(&mut nexus, &compare_and_write(4), &out(&data));
    assert_eq!(missed.status, Status::CHECK_CONDITION);
    assert_eq!(missed.sense.as_bytes()[2], 0x0E);
    let (_, back) = rig.call(&mut nexus, &read_10(4, 1), &room(512));
    assert!(back.iter().all(|&byte| byte == 5));
}

#[test]
fn an_ordered_task_waits_for_the_lent_read_before_it() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let read = rig.submit(&mut nexus, &read_10(0, 1), &room(512));
    rig.engine.completions(&mut rig.done);
    assert!(matches!(rig.done[0].data, DataIn::Lent(..)));
    let how = How { attribute: TaskAttribute::Ordered, ..How::default() };
    let ordered = rig.submit(&mut nexus, &TUR, &how);
    let after = rig.submit(&mut nexus, &TUR, &How::default());
    assert_eq!(rig.engine.tasks_in_progress(), 2);
    rig.wait(read);
    rig.wait(ordered);
    rig.wait(after);
    assert!(!rig.engine.is_busy());
}

#[test]
fn a_lent_read_copied_into_a_buffer_ends_the_loan() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let data = [0xC3; 512];
    rig.call(&mut nexus, &write_10(0, 1), &out(&data));
    rig.submit(&mut nexus, &read_10(0, 1), &room(512));
    rig.engine.completions(&mut rig.done);
    let data = rig.done[0].take_data();
    assert!(matches!(data, DataIn::Lent(..)));
    let none = Pool::new(0);
    let data = data.into_buffer(&none).unwrap_err();
    assert!(matches!(data, DataIn::Lent(..)), "kept when the pool is exhausted");
    let (buffer, len) = data.into_buffer(&rig.engine.pool).unwrap();
    assert_eq!((len, &buffer.bytes()[..len]), (512, &[0xC3; 512][..]));
    let (again, len) = DataIn::Buffer(buffer, 100).into_buffer(&none).unwrap();
    assert_eq!((len, again.bytes()[99]), (100, 0xC3));
    assert!(matches!(DataIn::Placed(4).into_buffer(&none), Err(DataIn::Placed(4))));
    // An ORDERED task would wait for a loan.
    let how = How { attribute: TaskAttribute::Ordered, ..How::default() };
    let ordered = rig.submit(&mut nexus, &TUR, &how);
    rig.wait(ordered);
}

#[test]
fn abort_task_ends_a_task_that_waits_for_data() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let owner = rig.owner();
    let how = out(&[0; 512]);
    let cdb = write_10(0, 1);
    let command = how.command(owner.cookie, &cdb);
    let Submitted::NeedsData(data) = rig.engine.submit(&mut nexus, &command, Memory::Pool, owner)
    else {
        panic!()
    };
    let abort = rig.manage(&mut nexus, TaskFunction::AbortTask, owner.cookie);
    assert_eq!(rig.wait(owner.cookie).0, Outcome::Silent);
    // Its data may still be on the way: nothing is done, for this abort or the next, until it is.
    let second = rig.manage(&mut nexus, TaskFunction::AbortTask, owner.cookie);
    rig.engine.turn(&mut Vec::new());
    rig.engine.completions(&mut rig.done);
    assert!(rig.done.is_empty());
    rig.engine.data_arrived(data.token, data.buffer);
    assert_eq!(rig.wait(abort).1.code, ResponseCode::FunctionComplete);
    assert_eq!(rig.wait(second).1.code, ResponseCode::TaskDoesNotExist);
    let again = rig.manage(&mut nexus, TaskFunction::AbortTask, owner.cookie);
    assert_eq!(rig.wait(again).1.code, ResponseCode::TaskDoesNotExist);
    assert!(!rig.engine.is_busy());
}

#[test]
fn a_write_whose_blocks_went_away_while_it_waited_for_data_is_refused() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let owner = rig.owner();
    let how = out(&[0; 512]);
    let cdb = write_10(2047, 1);
    let command = how.command(owner.cookie, &cdb);
    let Submitted::NeedsData(data) = rig.engine.submit(&mut nexus, &command, Memory::Pool, owner)
    else {
        panic!()
    };
    rig.lu.backend.resize(Some(1 << 19)).unwrap();
    rig.engine.data_arrived(data.token, data.buffer);
    let response = rig.wait(owner.cookie).1;
    assert_eq!(response.sense.as_bytes()[12], 0x21);
    assert_eq!(rig.lu.backend.len(), 1 << 19);
}

#[test]
fn clear_task_set_tells_the_other_nexus() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.nexus("iqn.a"), rig.nexus("iqn.b"));
    let owner = rig.owner();
    let how = out(&[0; 512]);
    let cdb = write_10(0, 1);
    let command = how.command(owner.cookie, &cdb);
    let Submitted::NeedsData(data) = rig.engine.submit(&mut b, &command, Memory::Pool, owner)
    else {
        panic!()
    };
    let clear = rig.manage(&mut a, TaskFunction::ClearTaskSet, 0);
    assert_eq!(rig.wait(owner.cookie).0, Outcome::Silent);
    rig.engine.abandon(data.token);
    rig.wait(clear);
    let (told, _) = rig.call(&mut b, &TUR, &How::default());
    assert_eq!(told.sense, Attention::COMMANDS_CLEARED.sense().encode(false));
    assert_eq!(rig.call(&mut a, &TUR, &How::default()).0.status, Status::GOOD);
}

#[test]
fn a_logical_unit_reset_reaches_every_nexus() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.nexus("iqn.a"), rig.nexus("iqn.b"));
    let reset = rig.manage(&mut a, TaskFunction::LogicalUnitReset, 0);
    assert_eq!(rig.wait(reset).1.code, ResponseCode::FunctionComplete);
    for nexus in [&mut a, &mut b] {
        let (told, _) = rig.call(nexus, &TUR, &How::default());
        assert_eq!(told.sense, Attention::LOGICAL_UNIT_RESET.sense().encode(false));
    }
}

#[test]
fn aca_holds_back_everybody_until_it_is_cleared() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.nexus("iqn.a"), rig.nexus("iqn.b"));
    let mut beyond = read_10(u32::MAX, 1);
    beyond[9] = 0x04;
    let (failed, _) = rig.call(&mut a, &beyond, &room(512));
    assert_eq!(failed.status, Status::CHECK_CONDITION);
    assert_eq!(rig.call(&mut a, &TUR, &How::default()).0.status, Status::ACA_ACTIVE);
    assert_eq!(rig.call(&mut b, &TUR, &How::default()).0.status, Status::BUSY);
    let how = How { attribute: TaskAttribute::Aca, ..How::default() };
    assert_eq!(rig.call(&mut a, &TUR, &how).0.status, Status::GOOD);
    let clear = rig.manage(&mut a, TaskFunction::ClearAca, 0);
    rig.wait(clear);
    assert_eq!(rig.call(&mut b, &TUR, &How::default()).0.status, Status::GOOD);
    assert_eq!(rig.call(&mut a, &TUR, &how).0.status, Status::CHECK_CONDITION);
}

#[test]
fn a_reservation_shuts_out_the_other_nexus() {
    let mut rig = Rig::new();
    let (mut a, mut b) = (rig.nexus("iqn.a"), rig.nexus("iqn.b"));
    let reserve = [0x16, 0, 0, 0, 0, 0];
    assert_eq!(rig.call(&mut a, &reserve, &How::default()).0.status, Status::GOOD);
    let (shut_out, _) = rig.call(&mut b, &read_10(0, 1), &room(512));
    assert_eq!(shut_out.status, Status::RESERVATION_CONFLICT);
    drop(a);
    assert_eq!(rig.call(&mut b, &read_10(0, 1), &room(512)).0.status, Status::GOOD);
}

#[test]
fn an_unknown_opcode_and_a_reserved_bit_are_refused() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let (unknown, _) = rig.call(&mut nexus, &[0xFE, 0, 0, 0, 0, 0], &How::default());
    assert_eq!(unknown.sense, Sense::INVALID_OPCODE.encode(false));
    let (reserved, _) = rig.call(&mut nexus, &[0, 0, 0, 0x80, 0, 0], &How::default());
    assert_eq!(reserved.sense, Sense::cdb_bit(3, 7).encode(false));
}

#[test]
fn query_task_finds_what_is_in_progress() {
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let owner = rig.owner();
    let how = out(&[0; 512]);
    let cdb = write_10(0, 1);
    let command = how.command(owner.cookie, &cdb);
    let Submitted::NeedsData(data) = rig.engine.submit(&mut nexus, &command, Memory::Pool, owner)
    else {
        panic!()
    };
    let query = rig.manage(&mut nexus, TaskFunction::QueryTask, owner.cookie);
    assert_eq!(rig.wait(query).1.code, ResponseCode::FunctionSucceeded);
    rig.engine.abandon(data.token);
    let query = rig.manage(&mut nexus, TaskFunction::QueryTask, owner.cookie);
    assert_eq!(rig.wait(query).1.code, ResponseCode::FunctionComplete);
}

#[test]
fn transport_memory_is_read_and_written_in_place() {
    use crate::reactor::sg::Segment;
    let mut rig = Rig::new();
    let mut nexus = rig.nexus("iqn.a");
    let (mut first, mut second) = ([1u8; 100], [2u8; 924]);
    let list = [Segment::of(&mut first), Segment::of(&mut second)];
    let owner = rig.owner();
    let cdb = write_10(8, 2);
    let how = How { out: &[0; 1024], ..How::default() };
    let memory = Memory::Own { out: &list, into: &[] };
    let command = how.command(owner.cookie, &cdb);
    assert!(matches!(rig.engine.submit(&mut nexus, &command, memory, owner), Submitted::Accepted));
    assert_eq!(rig.wait(owner.cookie).1.status, Status::GOOD);

    let (mut front, mut back) = ([0u8; 512], [0u8; 188]);
    let list = [Segment::of(&mut front), Segment::of(&mut back)];
    let owner = rig.owner();
    let cdb = read_10(8, 2);
    let memory = Memory::Own { out: &[], into: &list };
    let command = room(700).command(owner.cookie, &cdb);
    assert!(matches!(rig.engine.submit(&mut nexus, &command, memory, owner), Submitted::Accepted));
    assert_eq!(rig.wait(owner.cookie).1.data_in, Residual::Over(324));
    assert_eq!((front[99], front[100], back[187]), (1, 2, 2));
}
