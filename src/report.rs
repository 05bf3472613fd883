//! What a person is told when something fails: what happened, why, and what to do.

use std::{
    borrow::Cow,
    fmt,
    io::{self, IsTerminal, Write},
    process::ExitCode,
};

/// How the process ends: sysexits, besides 0, 1 and 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Something failed that no other code says.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// An input file is missing or of the wrong kind.
    NoInput = 66,
    /// A service that is needed does not answer.
    Unavailable = 69,
    /// Something cannot be created: a socket, a directory.
    CannotCreate = 73,
    /// Input or output failed.
    Io = 74,
    /// It may work later: somebody else has it now.
    Retry = 75,
    /// Not permitted.
    Permission = 77,
    /// The configuration is wrong.
    Config = 78,
}

impl Exit {
    /// The exit code of a number that came over the control socket.
    pub fn from_number(number: i64) -> Self {
        let known = [
            Self::Usage,
            Self::NoInput,
            Self::Unavailable,
            Self::CannotCreate,
            Self::Io,
            Self::Retry,
            Self::Permission,
            Self::Config,
        ];
        known.into_iter().find(|&exit| exit as i64 == number).unwrap_or(Self::Failed)
    }

    /// The code for an error of the operating system.
    pub fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoInput,
            io::ErrorKind::PermissionDenied => Self::Permission,
            io::ErrorKind::AddrInUse | io::ErrorKind::WouldBlock => Self::Retry,
            io::ErrorKind::AddrNotAvailable => Self::Unavailable,
            _ => Self::Io,
        }
    }
}

/// An error as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// A short name of the fault, for scripts and for looking it up.
    pub code: Cow<'static, str>,
    /// What happened.
    pub what: String,
    /// Why, where `what` does not say it.
    pub why: Option<String>,
    /// What to do.
    pub fix: Option<String>,
    /// How the process ends.
    pub exit: Exit,
}

impl Report {
    /// A report without a reason and a remedy.
    pub fn new(exit: Exit, code: &'static str, what: impl Into<String>) -> Self {
        Self { code: Cow::Borrowed(code), what: what.into(), why: None, fix: None, exit }
    }

    /// Adds the reason.
    pub fn why(self, why: impl fmt::Display) -> Self {
        Self { why: Some(why.to_string()), ..self }
    }

    /// Adds the remedy.
    pub fn fix(self, fix: impl fmt::Display) -> Self {
        Self { fix: Some(fix.to_string()), ..self }
    }

    /// Writes it to standard error and gives the exit code.
    pub fn print(&self) -> ExitCode {
        let color = io::stderr().is_terminal() && use_color();
        let text = self.render(color);
        // Nobody is left to tell when standard error is closed.
        let _ = io::stderr().write_all(text.as_bytes());
        ExitCode::from(self.exit as u8)
    }

    fn render(&self, color: bool) -> String {
        let (red, bold, end) =
            if color { ("\x1b[1;31m", "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
        let mut text = format!("{red}error[{}]{end}: {}\n", self.code, self.what);
        for (label, line) in [("why", &self.why), ("fix", &self.fix)] {
            if let Some(line) = line {
                text += &format!("  {bold}{label}:{end} {line}\n");
            }
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

/// Whether colours are wanted at all (<https://no-color.org>).
pub fn use_color() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_why_and_fix() {
        let report = Report::new(Exit::Retry, "locked", "a.img is in use")
            .why("process 7 holds it")
            .fix("stop it");
        let expected =
            "error[locked]: a.img is in use\n  why: process 7 holds it\n  fix: stop it\n";
        assert_eq!(report.render(false), expected);
    }

    #[test]
    fn a_number_of_no_known_exit_is_a_failure() {
        assert_eq!(Exit::from_number(75), Exit::Retry);
        assert_eq!(Exit::from_number(-5), Exit::Failed);
    }
}
