//! The `backhaul-receiver` command: the reference upstream.

fn main() -> std::process::ExitCode {
    backhaul::receiver::cli::main()
}
