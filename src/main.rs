//! The `backhaul` command.

fn main() -> std::process::ExitCode {
    backhaul::cli::main()
}
