//! Programs of other people, in Python and Node, from the environment that `tests/run` makes.

use std::process::Command;

use super::engines::are_required;

/// Python. `None` if the environment is not there and need not be.
pub(crate) fn python() -> Option<Command> {
    program("WARREN_TEST_PYTHON")
}

/// Python with a program of `tests/python`.
pub(crate) fn python_script(name: &str) -> Option<Command> {
    python().map(|python| with_script(python, &format!("python/{name}")))
}

/// Node with a program of `tests/node`.
pub(crate) fn node_script(name: &str) -> Option<Command> {
    program("WARREN_TEST_NODE").map(|node| with_script(node, &format!("node/{name}")))
}

fn with_script(mut command: Command, script: &str) -> Command {
    command.arg(format!("{}/tests/{script}", env!("CARGO_MANIFEST_DIR")));
    command
}

fn program(variable: &str) -> Option<Command> {
    let program = std::env::var(variable).ok().filter(|program| !program.is_empty());
    assert!(program.is_some() || !are_required(), "{variable} is required; tests/run makes an environment");
    if program.is_none() {
        eprintln!("left out: {variable} is not set");
    }
    program.map(Command::new)
}
