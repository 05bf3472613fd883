//! Random orders of everything that can happen on a channel, against an initiator that counts.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// What the core and the reads have of a command.
#[derive(Debug)]
struct Running {
    task: TaskId,
    tag: u8,
    /// Its descriptor table is being read.
    fetching: bool,
    /// Its Data-Out is being read.
    reading: bool,
    /// The core aborted it: it ends silently.
    aborted: bool,
    /// The core has told that it ended, but a read goes on.
    told: bool,
}

#[derive(Debug)]
struct Function {
    task: TaskId,
    tag: u8,
    /// The core answers it when these are gone.
    waits: BTreeSet<u8>,
}

/// An initiator, the core and the wire around a channel.
#[derive(Debug)]
struct World {
    channel: Channel,
    limit: u32,
    credit: i64,
    next_tag: u8,
    running: Vec<Running>,
    functions: Vec<Function>,
    /// Requests that the initiator has no answer for, and commands it has aborted.
    unanswered: BTreeSet<(bool, u8)>,
    aborted: BTreeSet<u8>,
    credit_asked: Vec<Tag>,
}

impl World {
    fn new(limit: u32) -> Self {
        Self {
            channel: channel(limit),
            limit,
            credit: limit.into(),
            next_tag: 0,
            running: Vec::new(),
            functions: Vec::new(),
            unanswered: BTreeSet::new(),
            aborted: BTreeSet::new(),
            credit_asked: Vec::new(),
        }
    }

    /// The initiator receives a unit.
    fn deliver(&mut self, unit: Unit, out: &[u8]) {
        match TargetIu::parse(&out[..unit.len]).unwrap() {
            TargetIu::Rsp(rsp) => {
                let (is_function, tag) = (rsp.tag.0[0] == 0x80, rsp.tag.0[7]);
                assert!(self.unanswered.remove(&(is_function, tag)), "answered twice: {rsp:?}");
                assert!(is_function || !self.aborted.contains(&tag), "answered after its abort");
                self.credit += i64::from(rsp.limit_delta);
            }
            TargetIu::CredReq(request) => {
                self.credit += i64::from(request.limit_delta);
                self.credit_asked.push(request.tag);
                assert_eq!(self.credit_asked.len(), 1, "two requests at a time");
            }
            other => panic!("{other:?}"),
        }
        assert!(self.credit <= i64::from(self.limit), "credit was made");
    }

    fn send_command(&mut self, kind: u8) {
        if self.credit == 0 {
            return;
        }
        let tag = self.next_tag;
        self.next_tag = (tag + 1) % 200;
        if self.unanswered.contains(&(false, tag)) || self.aborted.contains(&tag) {
            return;
        }
        let iu = match kind % 4 {
            0 => cmd(tag, 0, NONE, NONE),
            1 => cmd(tag, 0, NONE, external(1, 512)),
            2 => cmd(tag, 0, DataBuffer::Direct(segment(1, 512)), NONE),
            _ => cmd(tag, 0, DataBuffer::Direct(segment(1, 512)), external(1, 512)),
        };
        self.credit -= 1;
        self.unanswered.insert((false, tag));
        let running = |task, fetching, reading| Running {
            task,
            tag,
            fetching,
            reading,
            aborted: false,
            told: false,
        };
        match self.channel.receive(&iu).unwrap() {
            Step::Start(start) => {
                let (task, reads) = (start.task, start.command.data_out > 0);
                self.running.push(running(task, false, reads));
                if reads {
                    self.channel.reading(task);
                }
            }
            Step::Fetch { task, .. } => self.running.push(running(task, true, false)),
            Step::Refuse(refused) => {
                let mut out = [0; MAX_TARGET_IU];
                let unit = self.channel.refuse(refused, &mut out).unwrap();
                self.deliver(unit, &out);
            }
            other => panic!("{other:?}"),
        }
    }

    fn send_function(&mut self, which: usize, is_set: bool, takes_back: bool) {
        if self.credit == 0 {
            return;
        }
        let tag = self.next_tag;
        self.next_tag = (tag + 1) % 200;
        if self.unanswered.contains(&(true, tag)) {
            return;
        }
        let managed = match self.running.get(which % self.running.len().max(1)) {
            Some(command) => command.tag,
            None => 0xFE,
        };
        let code = if is_set { FunctionCode::LogicalUnitReset } else { FunctionCode::AbortTask };
        self.credit -= 1;
        self.unanswered.insert((true, tag));
        let task = manage(&mut self.channel, &function(tag, 0, code, managed));
        let mut waits = BTreeSet::new();
        for command in &mut self.running {
            if !is_set && command.tag != managed || command.fetching {
                continue;
            }
            waits.insert(command.tag);
            command.aborted = true;
        }
        if !is_set && self.running.iter().any(|command| command.tag == managed) {
            self.aborted.insert(managed);
        }
        self.functions.push(Function { task, tag, waits });
        if takes_back {
            for task in self.channel.ended_fetches().collect::<Vec<_>>() {
                self.channel.fetch_ended(task);
                self.gone(task);
            }
            self.answer_due();
        }
    }

    /// A command is over.
    fn gone(&mut self, task: TaskId) {
        let at = self.running.iter().position(|command| command.task == task).unwrap();
        let tag = self.running.swap_remove(at).tag;
        if self.unanswered.remove(&(false, tag)) {
            // Never answered: the initiator frees the tag with the answer to the function.
            self.aborted.insert(tag);
        }
        self.functions.iter_mut().for_each(|function| {
            function.waits.remove(&tag);
        });
    }

    fn answer_due(&mut self) {
        let mut out = [0; MAX_TARGET_IU];
        while let Some((task, response)) = self.channel.due() {
            let unit = self.channel.answer(task, &response, &mut out).unwrap();
            self.deliver(unit, &out);
        }
    }

    /// The next thing happens to a command.
    fn go_on(&mut self, which: usize) {
        let mut out = [0; MAX_TARGET_IU];
        let count = self.running.len().max(1);
        let Some(command) = self.running.get_mut(which % count) else { return };
        let (task, good) = (command.task, Response::good(Tag::default()));
        let outcome = if command.aborted { Outcome::Silent } else { Outcome::Respond };
        if command.fetching {
            command.fetching = false;
            match self.channel.fetched(task, &table(&[segment(1, 512)])) {
                Fetched::Start(_) => {}
                Fetched::Ended => {
                    self.gone(task);
                    self.answer_due();
                }
                other => panic!("{other:?}"),
            }
        } else if command.reading && command.aborted && !command.told {
            command.told = true;
            assert_eq!(self.channel.ended(task, outcome, &good), Ended::Wait);
        } else if command.reading {
            command.reading = false;
            match self.channel.drained(task) {
                Drained::Deliver => {}
                Drained::Over => self.gone(task),
                other => panic!("{other:?}"),
            }
        } else {
            match self.channel.ended(task, outcome, &good) {
                Ended::Answer => {
                    let unit = self.channel.answer(task, &good, &mut out).unwrap();
                    self.deliver(unit, &out);
                }
                Ended::Silent => {}
                Ended::Wait => panic!("nothing is read"),
            }
            self.gone(task);
        }
    }

    /// The core answers a function whose tasks are gone.
    fn finish_function(&mut self) {
        let mut out = [0; MAX_TARGET_IU];
        let Some(at) = self.functions.iter().position(|function| function.waits.is_empty()) else {
            return;
        };
        let Function { task, tag, .. } = self.functions.swap_remove(at);
        if self.channel.ended(task, Outcome::Respond, &COMPLETE) == Ended::Answer {
            let unit = self.channel.answer(task, &COMPLETE, &mut out).unwrap();
            self.deliver(unit, &out);
            assert!(!self.unanswered.contains(&(true, tag)));
        }
    }

    fn settle(&mut self) {
        let mut out = [0; MAX_TARGET_IU];
        if let Some(unit) = self.channel.settle(&mut out) {
            self.deliver(unit, &out);
        }
        let limit = self.channel.limit();
        assert_eq!(i64::from(limit.available()), self.credit);
        assert_eq!(limit.available() + limit.outstanding() + limit.owed(), self.limit);
    }

    /// The initiator answers a CRED_REQ.
    fn take_credit(&mut self) {
        if let Some(tag) = self.credit_asked.pop() {
            let mut iu = [0; 16];
            iu[0] = 0x41;
            iu[8..].copy_from_slice(&tag.0);
            assert_eq!(self.channel.receive(&iu), Ok(Step::Nothing));
        }
    }
}

proptest! {
    #[test]
    fn credit_is_neither_made_nor_lost_and_everything_is_answered_once(
        limit in 2..9_u32,
        steps in prop::collection::vec((0..8_u8, any::<u8>(), any::<bool>()), 0..400),
    ) {
        let mut world = World::new(limit);
        for (step, which, flag) in steps {
            match step {
                0 | 1 => world.send_command(which),
                2 => world.send_function(which.into(), false, flag),
                3 => world.send_function(which.into(), true, flag),
                4 | 5 => world.go_on(which.into()),
                6 => world.finish_function(),
                _ => world.take_credit(),
            }
            world.settle();
        }
        while !world.running.is_empty() {
            world.go_on(0);
        }
        while !world.functions.is_empty() {
            world.finish_function();
        }
        for _ in 0..2 {
            world.settle();
            world.take_credit();
        }
        prop_assert!(world.unanswered.is_empty());
        prop_assert!(world.channel.is_idle());
        prop_assert_eq!(world.channel.limit(), &RequestLimit::new(limit));
    }
}
