//! Interruption: unfinished files go, and the exit code says which signal came.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use transc::runtime::artefact::discard_temporaries;

/// What shells report for a program that a signal ended: 128 plus its number.
const SIGNALLED: i32 = 128;

/// From now on SIGINT and SIGTERM remove unfinished files and end the program with 130 and 143. Where signals cannot be caught, they end it
/// as the system does.
pub fn install() {
    let Ok(mut signals) = Signals::new([SIGINT, SIGTERM]) else { return };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            discard_temporaries();
            std::process::exit(SIGNALLED + signal);
        }
    });
}
