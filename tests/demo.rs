//! `mailramp demo` as a program would run it: not on a terminal, a few days, a second each.

use std::ffi::OsString;

use mailramp::cli;

fn run(arguments: &[&str]) -> (u8, String, String) {
    let (mut out, mut errors) = (Vec::new(), Vec::new());
    let all = ["mailramp", "demo"].iter().chain(arguments).map(OsString::from);
    let code =
        cli::run(all, |_| Err("the demonstration reads no settings".into()), false, false, &mut out, &mut errors);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(errors).unwrap())
}

#[test]
fn a_short_ramp_ends_with_an_account_that_adds_up() {
    let (code, out, errors) =
        run(&["--speed", "1d=1s", "--days", "4", "--target", "1200", "--port", "0", "--http-port", "0", "--seed", "1"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{out}");
    assert!(out.contains("(seed 1)") && !out.contains('\x1b') && !out.contains("FAIL"), "{out}");
    for day in ["\n   1 Mon       50 ", "\n   2 Tue ", "\n   3 Wed ", "\n   4 Thu "] {
        assert!(out.contains(day), "{day:?} in\n{out}");
    }
    assert_eq!(out.lines().filter(|line| line.starts_with(" PASS  ")).count(), 6, "{out}");
    assert!(out.contains(" PASS  every accepted recipient is at one of the two servers, exactly once\n"), "{out}");
    assert!(out.contains("still in the queue: 0\n"), "{out}");
}

#[test]
fn a_port_in_use_ends_it_before_it_begins() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, out, errors) = run(&["--port", &port, "--http-port", "0"]);
    assert_eq!((code, out.as_str()), (75, ""));
    assert_eq!(
        errors,
        format!(
            "mailramp: 127.0.0.1:{port} is in use by another program; choose another port with --port N (0: any)\n"
        )
    );
}

#[test]
fn a_speed_that_cannot_be_is_refused_as_usage() {
    let (code, _, errors) = run(&["--speed", "fast"]);
    assert!(code == 2 && errors.contains("1d=12s"), "{errors}");
}
