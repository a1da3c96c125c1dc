//! A line of `metrics.jsonl`, read.

use crate::report::jsonl::End;
use serde_json::{Map, Value};

/// A line of `metrics.jsonl`. Steps count from 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub step: u64,
    /// Seconds since 1970. Early versions did not write it.
    pub time: Option<f64>,
    /// Names and values, those that are not finite included.
    pub numbers: Vec<(String, f64)>,
    pub sample: Option<Sample>,
    /// The end of a process.
    pub end: Option<End>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The index among the samples of all ranks before this step.
    pub index: u64,
    /// The prompt and its continuation.
    pub text: String,
}

impl Line {
    /// Reads a line, or returns nothing if it is something else, such as a note.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let object: Map<String, Value> = serde_json::from_slice(text).ok()?;
        // Steps of 2^53 and more have no exact double, which some trackers need.
        let step = object.get("step")?.as_u64().filter(|step| *step < 1 << 53)?;
        let text = |name: &str| object.get(name).and_then(Value::as_str);
        let time = object.get("time").and_then(Value::as_f64).filter(|time| (0.0..1e11).contains(time));
        let sample = object.get("sample").and_then(Value::as_u64).zip(text("text"));
        let sample = sample.map(|(index, text)| Sample { index, text: text.to_owned() });
        let plain = object.iter().filter(|(name, _)| !["step", "time", "sample"].contains(&name.as_str()));
        let finite = plain.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)));
        let strange = object.get("nonfinite").and_then(Value::as_object).into_iter().flatten();
        let strange = strange.filter_map(|(name, value)| Some((name.clone(), nonfinite(value.as_str()?)?)));
        let numbers = finite.chain(strange).collect();
        Some(Line { step, time, numbers, sample, end: text("end").and_then(End::from_name) })
    }

    /// Reads all lines of a part of the log.
    pub fn parse_all(text: &[u8]) -> Vec<Self> {
        text.split(|&byte| byte == b'\n').filter_map(Self::parse).collect()
    }
}

fn nonfinite(text: &str) -> Option<f64> {
    match text.trim_start_matches('-') {
        "nan" => Some(f64::NAN),
        "inf" if text.starts_with('-') => Some(f64::NEG_INFINITY),
        "inf" => Some(f64::INFINITY),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_samples_and_ends_are_read() {
        let line = Line::parse(br#"{"step":3,"loss":null,"lr":0.5,"norm":null,"note":"x","nonfinite":{"loss":"nan","norm":"-inf"},"time":12.5}"#).unwrap();
        assert_eq!((line.step, line.time, &line.sample, line.end), (3, Some(12.5), &None, None));
        let numbers: Vec<_> = line.numbers.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(numbers, ["lr=0.5", "loss=NaN", "norm=-inf"]);
        let sample = Line::parse(br#"{"step":3,"sample":1,"text":"a\nb"}"#).unwrap();
        assert_eq!(sample.sample, Some(Sample { index: 1, text: "a\nb".to_owned() }));
        assert!(sample.numbers.is_empty() && sample.time.is_none());
        let end = Line::parse(br#"{"step":4,"end":"completed","time":13}"#).unwrap();
        assert_eq!((end.end, end.time), (Some(End::Completed), Some(13.0)));
    }

    #[test]
    fn anything_else_is_left_out() {
        for text in [
            "",
            "{",
            "[]",
            "{\"loss\":1}",
            "{\"step\":-1}",
            "{\"step\":1e300}",
            "{\"step\":18446744073709551615}",
        ] {
            assert_eq!(Line::parse(text.as_bytes()), None, "{text}");
        }
        let lines = Line::parse_all(b"{\"step\":1}\nnote\n\xff\n{\"step\":2,\"time\":-5,\"sample\":\"x\"}\n");
        assert_eq!(
            lines.iter().map(|line| (line.step, line.time)).collect::<Vec<_>>(),
            [(1, None), (2, None)]
        );
    }
}
