//! The command window of a session: CmdSN, ExpCmdSN and MaxCmdSN (RFC 7143 4.2.2.1).

/// Where a session stands in the order of its commands. All numbers wrap at 2^32 and are compared
/// by serial number arithmetic (RFC 1982).
#[derive(Clone, Debug)]
pub struct Window {
    expected: u32,
    highest: u32,
    size: u32,
    /// Numbers that were aborted before their command came (RFC 7143 11.5.1).
    skipped: Vec<u32>,
}

/// What to do with a command that is not immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It is the next one.
    InOrder,
    /// Earlier ones still have to come.
    Early,
    /// A duplicate, or outside the window: drop it silently.
    Ignore,
}

impl Window {
    /// A window of `size` commands that starts at the leading login's CmdSN.
    pub fn new(first: u32, size: u32) -> Self {
        let size = size.clamp(1, 1 << 16);
        Self { expected: first, highest: first.wrapping_add(size - 1), size, skipped: Vec::new() }
    }

    /// ExpCmdSN.
    pub fn expected(&self) -> u32 {
        self.expected
    }

    /// MaxCmdSN.
    pub fn highest(&self) -> u32 {
        self.highest
    }

    /// Judges a command's number without taking it.
    pub fn judge(&self, cmd_sn: u32) -> Arrival {
        if cmd_sn == self.expected && self.is_open() {
            Arrival::InOrder
        } else if self.contains(cmd_sn) && !self.skipped.contains(&cmd_sn) {
            Arrival::Early
        } else {
            Arrival::Ignore
        }
    }

    /// Takes the next command: ExpCmdSN advances.
    pub fn take(&mut self) {
        self.expected = self.expected.wrapping_add(1);
        self.pass_skipped();
    }

    /// Lets the window move so that at most `size` commands are in progress. MaxCmdSN never goes
    /// back.
    pub fn open(&mut self, in_progress: u32) {
        let room = self.size.saturating_sub(in_progress);
        let highest = self.expected.wrapping_add(room).wrapping_sub(1);
        if before(self.highest, highest) {
            self.highest = highest;
        }
    }

    /// Marks a number as received whose command has not come and shall never run: true if it lies
    /// in the window.
    pub fn skip(&mut self, cmd_sn: u32) -> bool {
        if !self.contains(cmd_sn) {
            return false;
        }
        if !self.skipped.contains(&cmd_sn) {
            self.skipped.push(cmd_sn);
        }
        self.pass_skipped();
        true
    }

    /// Whether a number is still to come.
    pub fn is_ahead(&self, cmd_sn: u32) -> bool {
        !before(cmd_sn, self.expected)
    }

    fn is_open(&self) -> bool {
        !before(self.highest, self.expected)
    }

    fn contains(&self, cmd_sn: u32) -> bool {
        !before(cmd_sn, self.expected) && !before(self.highest, cmd_sn)
    }

    fn pass_skipped(&mut self) {
        while let Some(at) = self.skipped.iter().position(|&sn| sn == self.expected) {
            self.skipped.swap_remove(at);
            self.expected = self.expected.wrapping_add(1);
        }
    }
}

/// Whether `a` comes before `b`.
pub fn before(a: u32, b: u32) -> bool {
    a != b && b.wrapping_sub(a) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_in_order_move_the_window_across_the_wrap() {
        let mut window = Window::new(0xFFFF_FFFE, 4);
        for sn in [0xFFFF_FFFE, 0xFFFF_FFFF, 0, 1] {
            assert_eq!(window.judge(sn), Arrival::InOrder);
            window.take();
            window.open(0);
        }
        assert_eq!((window.expected(), window.highest()), (2, 5));
    }

    #[test]
    fn numbers_outside_the_window_are_ignored() {
        let window = Window::new(10, 4);
        assert_eq!(window.judge(9), Arrival::Ignore);
        assert_eq!(window.judge(14), Arrival::Ignore);
        assert_eq!(window.judge(13), Arrival::Early);
    }

    #[test]
    fn a_full_window_stays_closed_until_commands_finish() {
        let mut window = Window::new(0, 2);
        window.take();
        window.open(1);
        window.take();
        window.open(2);
        assert_eq!(window.judge(2), Arrival::Ignore);
        window.open(1);
        assert_eq!(window.judge(2), Arrival::InOrder);
    }

    #[test]
    fn more_in_progress_never_takes_promised_room_back() {
        let mut window = Window::new(0, 8);
        window.open(8);
        assert_eq!(window.highest(), 7);
    }

    #[test]
    fn a_skipped_number_is_passed_when_its_turn_comes() {
        let mut window = Window::new(5, 8);
        assert!(window.skip(6));
        assert_eq!(window.judge(6), Arrival::Ignore);
        window.take();
        assert_eq!(window.expected(), 7);
        assert!(!window.skip(6));
    }
}
