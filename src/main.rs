//! The `vscsi` program.

mod cli;
mod config;
mod control;
mod disk;
mod doctor;
mod export;
mod logging;
mod report;
mod secrets;
mod serve;
mod size;
mod socket;
mod state;
mod suggest;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use cli::{Cli, Command};

fn main() -> ExitCode {
    let arguments = cli::backend::arguments(std::env::args_os());
    let matches = Cli::command().get_matches_from(arguments);
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    logging::init(&cli.common);
    let common = &cli.common;
    let result = match &cli.command {
        Command::Serve(args) => {
            let matches = matches.subcommand_matches("serve").unwrap_or(&matches);
            args.plan(matches, common.control.as_ref())
                .map_err(Into::into)
                .and_then(|plan| serve::run(plan, common.json))
        }
        Command::VhostUserScsi(args) if args.print_capabilities => {
            println!("{}", cli::backend::capabilities());
            Ok(())
        }
        Command::VhostUserScsi(args) => {
            let matches = matches.subcommand_matches("vhost-user-scsi").unwrap_or(&matches);
            args.plan(matches, common.control.as_ref())
                .and_then(|plan| serve::run(plan, common.json))
        }
        Command::Check { file } => serve::check(file, common.json),
        Command::Doctor => return doctor::run(common.json),
        Command::Lun(command) => control::client::lun(command, common),
        Command::Session(command) => control::client::session(command, common),
        Command::Stats => control::client::stats(common),
        Command::Shutdown => control::client::shutdown(common),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(report) => report.print(),
    }
}
