//! The readers of trackers: lines of `metrics.jsonl`, event files, settings, and an exported page.

use super::{directory, judge, write};
use warpsmith::report::settings::RunSettings;
use warpsmith::track::{Line, events};
use warpsmith::watch::Watch;

const LINES: &str = r#"{"step":0,"val_loss":4.1180773,"val_perplexity":61.44,"time":1700000000.5}
{"step":0,"loss":null,"norm":0.17,"tokens":64,"nonfinite":{"loss":"nan"},"rss_bytes":84410368,"time":1700000001}
{"step":1,"sample":0,"text":"a\\nb</script>","time":1700000002}
{"step":1,"end":"completed","time":1700000003}
"#;

pub fn lines() -> Vec<Vec<u8>> {
    vec![LINES.into()]
}

pub fn log_lines(bytes: &[u8]) -> bool {
    let directory = directory().join("tracked");
    write(&directory.join("metrics.jsonl"), bytes);
    let page = Watch::new(std::slice::from_ref(&directory)).and_then(|watch| watch.export()).unwrap();
    assert_eq!(page.matches("</script>").count(), 2, "the log ends the page's script");
    let lines = Line::parse_all(bytes);
    assert!(lines.iter().all(|line| line.step < 1 << 53 && line.time.is_none_or(f64::is_finite)));
    !lines.is_empty()
}

pub fn event_files() -> Vec<Vec<u8>> {
    let path = directory().join("seed_events");
    let _ = std::fs::remove_file(&path);
    let lines = Line::parse_all(LINES.as_bytes());
    let mut writer = events::Writer::create(path.clone(), 1.7e9, Some(0)).unwrap();
    writer.lines(&lines.iter().collect::<Vec<_>>()).unwrap();
    vec![std::fs::read(path).unwrap()]
}

pub fn event_file(bytes: &[u8]) -> bool {
    let path = directory().join("events");
    write(&path, bytes);
    let mut places = Vec::new();
    let accepted = judge(events::read(&path, &mut places), "events");
    assert!(places.is_sorted_by_key(|place| place.0));
    accepted && !places.is_empty()
}

pub fn run_settings() -> Vec<Vec<u8>> {
    vec![br#"{"run":"0123456789abcdef","started":1.5,"program":"train_gpt2 0.1.0","settings":[["dtype","f32"]]}"#.to_vec()]
}

pub fn settings(bytes: &[u8]) -> bool {
    let directory = directory().join("settings");
    write(&directory.join("settings.json"), bytes);
    judge(RunSettings::read(&directory), "settings.json")
}
