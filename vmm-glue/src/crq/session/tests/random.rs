//! Anything that can happen, in any order: every request is answered once at most, nothing of an
//! earlier connection ever is, and credit is neither made nor lost.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Init,
    Complete,
    Login,
    Read,
    Abort,
    Mad(u8),
    End(usize, bool),
    Lost,
    Reopened,
    Junk([u8; 16]),
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Init),
        1 => Just(Event::Complete),
        4 => Just(Event::Login),
        12 => Just(Event::Read),
        3 => Just(Event::Abort),
        2 => any::<u8>().prop_map(Event::Mad),
        12 => (any::<usize>(), any::<bool>()).prop_map(|(at, silent)| Event::End(at, silent)),
        1 => Just(Event::Lost),
        1 => Just(Event::Reopened),
        1 => any::<[u8; 16]>().prop_map(Event::Junk),
    ]
}

/// What the core has, by the connection it came on.
#[derive(Default)]
struct World {
    tasks: Vec<(TaskId, u32, Tag)>,
    connection: u32,
    /// The client's view of the request limit, while it is logged in.
    credit: Option<i64>,
}

impl World {
    fn over(&mut self) {
        self.connection += 1;
        self.credit = None;
    }

    fn act(&mut self, rig: &mut Rig, event: &Event) {
        match event {
            Event::Init => match rig.session.element(&INIT) {
                Next::Restart => {
                    self.over();
                    rig.session.lost();
                    for (task, ..) in self.tasks.drain(..) {
                        assert_eq!(rig.end(task, &good(0)), None);
                    }
                    assert_eq!(rig.session.restarted(), COMPLETE);
                }
                Next::Deliver(COMPLETE) => self.over(),
                next => panic!("{next:?}"),
            },
            Event::Complete => assert_eq!(rig.session.element(&COMPLETE), Next::Nothing),
            Event::Login => self.send(rig, &login(256, 6), Format::Srp),
            Event::Read => self.send(rig, &read(1), Format::Srp),
            Event::Abort => self.send(rig, &function(2, FunctionCode::AbortTask, 1), Format::Srp),
            Event::Mad(kind) => {
                let mut unit = [0; 32];
                unit[3] = *kind;
                self.send(rig, &unit, Format::Mad);
            }
            Event::End(at, silent) => self.end(rig, *at, *silent),
            Event::Lost => {
                self.over();
                rig.session.lost();
            }
            Event::Reopened => {
                self.over();
                rig.session.closed();
                rig.session.opened();
            }
            Event::Junk(bytes) => {
                let mut bytes = *bytes;
                bytes[0] |= 0x81;
                assert!(bytes[0] == 0xC1 || rig.session.element(&bytes) == Next::Nothing);
            }
        }
    }

    fn send(&mut self, rig: &mut Rig, unit: &[u8], format: Format) {
        // A client keeps to its limit, and sends nothing before it may.
        if !matches!(rig.session.state(), State::Connected | State::LoggedIn)
            || format == Format::Srp && unit[0] != 0 && self.credit == Some(0)
        {
            return;
        }
        let was_logged_in = rig.session.state() == State::LoggedIn;
        let step = rig.step(unit, 256, format);
        match step {
            Step::Start { task, cmd } => {
                self.spend(was_logged_in);
                self.tasks.push((task, self.connection, cmd.tag));
            }
            Step::Manage { task, request } => {
                self.spend(was_logged_in);
                self.tasks.push((task, self.connection, request.tag));
            }
            Step::Reply(reply) => {
                let (_, unit) = rig.answer(reply);
                if format == Format::Srp && unit[0] == 0xC0 {
                    self.credit = Some(LoginRsp::parse(&unit).unwrap().limit_delta.into());
                }
            }
            Step::Payload(payload) => {
                let reply = rig.session.payload(&payload, None, &mut Vec::new(), &mut rig.out);
                let _ = rig.answer(reply);
            }
            Step::Nothing => {}
            Step::Violated(violation) => panic!("{violation}"),
        }
    }

    fn spend(&mut self, was_logged_in: bool) {
        if !was_logged_in {
            self.credit = Some(128);
        }
        self.credit = self.credit.map(|credit| credit - 1);
    }

    fn end(&mut self, rig: &mut Rig, at: usize, silent: bool) {
        if self.tasks.is_empty() {
            return;
        }
        let at = at % self.tasks.len();
        let (task, connection, tag) = self.tasks.swap_remove(at);
        let outcome = if silent { Outcome::Silent } else { Outcome::Respond };
        rig.out.fill(0xA5);
        let reply = rig.session.ended(task, outcome, &Response::good(tag), &mut rig.out);
        assert_eq!(reply.is_some(), connection == self.connection && !silent);
        if let Some(reply) = reply {
            let (message, unit) = rig.answer(reply);
            assert_eq!(message.tag(), tag);
            let delta = Rsp::parse(&unit).unwrap().limit_delta;
            self.credit = self.credit.map(|credit| credit + i64::from(delta));
        } else if connection == self.connection {
            self.credit = self.credit.map(|credit| credit + 1);
        }
        assert_eq!(rig.session.ended(task, outcome, &Response::good(tag), &mut rig.out), None);
    }
}

proptest! {
    #[test]
    fn whatever_happens_each_request_is_answered_once_and_only_where_it_came_from(
        events in prop::collection::vec(events(), 0..200),
    ) {
        let mut rig = Rig::with(Config::new("test"));
        let mut world = World::default();
        for event in &events {
            world.act(&mut rig, event);
            prop_assert_eq!(rig.session.in_progress(), world.tasks.len());
            let of_now = world.tasks.iter().filter(|task| task.1 == world.connection).count();
            if let Some(credit) = world.credit {
                prop_assert_eq!(credit + of_now as i64, 128);
            }
        }
    }
}
