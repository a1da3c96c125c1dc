use super::axis::{Axis, short};
use super::*;
use std::fmt::Write as _;

fn metrics_of(text: &str) -> Result<Metrics> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("metrics.jsonl");
    fs::write(&path, text).unwrap();
    read::read(&path)
}

/// Returns the metrics of a run with curves like those of a real one.
fn run(steps: usize) -> String {
    let mut text = String::new();
    for step in 0..steps {
        let t = step as f64;
        let wiggle = (t * 12.9898).sin() * 0.12;
        let loss = 1.1 + 9.8 * (-t / 60.0).exp() + 3.0 * (-t / 400.0).exp() + wiggle;
        let lr = 1e-3 * (t / 50.0).min(1.0) * (0.55 + 0.45 * (t / steps as f64 * std::f64::consts::PI).cos());
        let (norm, speed) = (0.6 + 3.0 * (-t / 80.0).exp() + wiggle.abs(), 6100.0 + 900.0 * wiggle);
        let ms = 4096.0 / speed * 1000.0;
        writeln!(
            text,
            r#"{{"step":{step},"loss":{loss},"norm":{norm},"lr":{lr},"ms":{ms},"tok_per_s":{speed}}}"#
        )
        .unwrap();
        if step % 100 == 99 {
            writeln!(text, r#"{{"step":{step},"val_loss":{}}}"#, loss + 0.06 - wiggle).unwrap();
            let accuracy = 0.25 + 0.06 * t / steps as f64;
            writeln!(text, r#"{{"step":{step},"hellaswag_acc_norm":{accuracy},"hellaswag_acc":0.2}}"#)
                .unwrap();
        }
    }
    text
}

#[test]
fn reading_forgives_what_a_killed_run_leaves() {
    let text = concat!(
        "{\"step\":0,\"loss\":10.5,\"lr\":null,\"norm\":\"NaN\",\"other\":{\"a\":[1]}}\n",
        "\n",
        "{\"loss\":3.0}\n",
        "{\"step\":2,\"loss\":8.0}\n",
        "{\"step\":1,\"loss\":9.0}\n",
        "{\"step\":2,\"loss\":7.5,\"hellaswag_acc\":0.2}\n",
        "{\"step\":3,\"lo"
    );
    let metrics = metrics_of(text).unwrap();
    assert_eq!(metrics.loss, [(0.0, 10.5), (1.0, 9.0), (2.0, 7.5)]);
    assert_eq!(metrics.tasks["hellaswag"].acc, [(2.0, 0.2)]);
    assert!(metrics.lr.is_empty() && metrics.norm.is_empty() && metrics.tokens.is_none());
}

#[test]
fn reading_names_what_is_wrong() {
    let error = |text| metrics_of(text).err().unwrap().to_string();
    assert!(error("{\"step\":0,\"loss\":1}\nnonsense\n{\"step\":1,\"loss\":1}\n").contains("line 2"));
    assert!(error("").contains("no points"));
    assert!(error("{\"step\":1,\"note\":5}\n").contains("no points"));
    let missing = format!("{:#}", plot_run(Path::new("/nowhere")).unwrap_err());
    assert!(missing.contains("/nowhere/metrics.jsonl") && !missing.contains('\n'));
}

#[test]
fn tokens_are_counted_from_time_or_told() {
    let counted = metrics_of(
        "{\"step\":0,\"ms\":500,\"tok_per_s\":4000}\n{\"step\":1,\"ms\":250,\"tok_per_s\":8000}\n",
    );
    assert_eq!(counted.unwrap().tokens, Some(4000.0));
    let told = metrics_of("{\"step\":0,\"ms\":500,\"tok_per_s\":4000,\"tokens\":123456}\n").unwrap();
    assert_eq!(told.tokens, Some(123_456.0));
}

#[test]
fn smoothing_keeps_constants_and_lags_behind() {
    let flat: read::Series = (0..10).map(|i| (f64::from(i), 3.0)).collect();
    assert!(read::smooth(&flat, 5.0).iter().all(|p| (p.1 - 3.0).abs() < 1e-12));
    // The second point spans 1.1, so the first keeps 1/11 of its weight.
    let second = read::smooth(&vec![(0.0, 0.0), (1.0, 1.0)], 2.0)[1].1;
    assert!((second - 10.0 / 11.0).abs() < 1e-12, "{second}");
}

#[test]
fn thinning_keeps_order_and_extremes() {
    let series: read::Series = (0..10_000).map(|i| (f64::from(i), f64::from(i * 7919 % 10_007))).collect();
    let thin = read::thin(&series, 100);
    assert!(thin.len() <= 100 && thin.windows(2).all(|p| p[0].0 < p[1].0));
    let greatest = |s: &read::Series| s.iter().map(|p| p.1).fold(0.0, f64::max);
    assert_eq!(greatest(&thin), greatest(&series));
    assert_eq!(read::thin(&series, 10_000), series);
}

#[test]
fn ticks_are_round_and_cover_the_values() {
    let axis = Axis::linear([0.3, 9.7].into_iter(), true, 5);
    assert_eq!(axis.ticks, [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
    let axis = Axis::linear([1234.0].into_iter(), false, 5);
    assert!(axis.low < 1234.0 && 1234.0 < axis.high);
    let axis = Axis::linear([0.0].into_iter(), true, 5);
    assert!(axis.low == 0.0 && axis.high > 0.0);
    let axis = Axis::steps([3.0, 11.0].into_iter(), 5);
    assert_eq!((axis.low, axis.high, axis.ticks), (0.0, 11.0, vec![0.0, 5.0, 10.0]));
    assert_eq!(Axis::steps([1999.0].into_iter(), 4).ticks.last(), Some(&2000.0));
    let axis = Axis::log([1.1, 10.9].into_iter()).unwrap();
    assert!([2.0, 5.0, 10.0].iter().all(|t| axis.ticks.contains(t)), "{:?}", axis.ticks);
    assert!((axis.place(axis.low)).abs() < 1e-12 && (axis.place(axis.high) - 1.0).abs() < 1e-12);
    assert!(Axis::log([2.0, 2.5].into_iter()).is_none());
    assert!(Axis::log([0.0, -1.0].into_iter()).is_none());
}

#[test]
fn numbers_are_short() {
    let cases = [(0.0, "0"), (0.25, "0.25"), (2.5, "2.5"), (10.0, "10"), (1000.0, "1000"), (10_000.0, "10k")];
    let more = [
        (12_500.0, "12.5k"),
        (4.1e6, "4.1M"),
        (1e10, "10B"),
        (6e-4, "6e-4"),
        (2.5e-5, "2.5e-5"),
        (1e-3, "1e-3"),
    ];
    for (value, text) in cases.into_iter().chain(more) {
        assert_eq!(short(value), text);
    }
}

fn png_size(path: &Path) -> (u32, u32) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    (number(16), number(20))
}

#[test]
fn a_run_becomes_svg_and_png_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("metrics.jsonl"), run(400)).unwrap();
    let written = plot_run(dir.path()).unwrap();
    let names = ["plot", "training_loss", "validation_loss", "learning_rate", "throughput", "gradient_norm"];
    for name in names.iter().chain(&["hellaswag_accuracy"]) {
        for extension in ["svg", "png"] {
            assert!(written.contains(&dir.path().join(name).with_extension(extension)), "{name}.{extension}");
        }
    }
    assert_eq!(written.len(), 14);
    assert_eq!(png_size(&dir.path().join("throughput.png")), (1280, 800));
    let svg = fs::read_to_string(dir.path().join("plot.svg")).unwrap();
    assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN"));
    let labels = ["Loss", "validation loss", "Learning rate", "tokens per second", "1.638M tokens"];
    // Above all of the run's accuracies, below all of its losses, and what a guess would score.
    let references = ["GPT-3 124M: 0.337", "GPT-2 124M, FineWeb: 3.2924", "chance: 0.25"];
    let best = ["lowest training loss ", ", validation loss ", " at step 399", "highest acc_norm 0.309"];
    for text in labels.into_iter().chain(references).chain(best) {
        assert!(svg.contains(text), "{text}");
    }
    // The picture is not empty: text and curves compress worse than a blank page.
    assert!(fs::metadata(dir.path().join("plot.png")).unwrap().len() > 20_000);
}

/// The ends of what f64 can hold, in both signs, and close neighbors.
const EXTREMES: [f64; 14] = [
    0.0,
    5e-324,
    -5e-324,
    1e-320,
    2.3e-308,
    -1e-300,
    1e-9,
    1.0,
    1.0000000000000002,
    -3.0,
    1e15,
    1e300,
    1.7976931348623157e308,
    -1.7e308,
];

#[test]
fn axes_of_any_numbers_have_places_and_few_ticks() {
    let pairs = EXTREMES.iter().flat_map(|&a| EXTREMES.map(|b| [a, b]));
    for values in pairs {
        let steps = values.map(f64::abs);
        let mut axes = vec![
            (Axis::linear(values.into_iter(), false, 6), values),
            (Axis::linear(values.into_iter(), true, 6), values),
            (Axis::steps(steps.into_iter(), 7), steps),
        ];
        axes.extend(Axis::log(values.into_iter()).map(|axis| (axis, values)));
        for (axis, values) in axes {
            assert!((1..=100).contains(&axis.ticks.len()), "{values:?}: {axis:?}");
            let numbers = values.into_iter().chain(axis.ticks.iter().copied());
            for number in numbers.filter(|number| !axis.log || *number > 0.0) {
                let place = axis.place(number);
                assert!((-0.01..=1.01).contains(&place), "{values:?}: {number} at {place} of {axis:?}");
                let text = short(number);
                assert!(text.len() < 12 && !text.contains("inf") && !text.contains("NaN"), "{text}");
            }
        }
    }
}

#[test]
fn a_run_with_extreme_numbers_is_drawn() {
    for values in [[-5e-324, 5e-324], [1.7e308, -1.7e308], [1.7976931348623157e308, 5e-324], [0.0, 0.0]] {
        let dir = tempfile::tempdir().unwrap();
        let mut text = String::from("\u{feff}{\"step\":-1e308,\"loss\":1}\n");
        for (step, value) in (0..40).map(|i| (f64::from(i) * 4e306, values[i as usize % 2])) {
            let keys = ["loss", "val_loss", "lr", "norm", "tok_per_s", "ms", "hellaswag_acc"];
            let fields = keys.map(|key| format!("\"{key}\":{value:e}")).join(",");
            writeln!(text, "{{\"step\":{step:e},{fields}}}").unwrap();
        }
        fs::write(dir.path().join("metrics.jsonl"), text).unwrap();
        let written = plot_run(dir.path()).unwrap();
        assert_eq!(written.len(), 14);
        for path in written.iter().filter(|path| path.extension().is_some_and(|e| e == "svg")) {
            let svg = fs::read_to_string(path).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{values:?}: {}", path.display());
        }
    }
}

#[test]
fn plots_are_whole_or_not_there() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("metrics.jsonl"), "{\"step\":0,\"val_loss\":5.1}\n").unwrap();
    fs::create_dir(dir.path().join("validation_loss.svg")).unwrap();
    let error = format!("{:#}", plot_run(dir.path()).unwrap_err());
    assert!(error.contains("validation_loss.svg") && !error.contains('\n'), "{error}");
    let names = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.ends_with(files::TEMPORARY)));
}

#[test]
fn one_point_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("metrics.jsonl"), "{\"step\":0,\"val_loss\":5.1}\n").unwrap();
    let written = plot_run(dir.path()).unwrap();
    assert_eq!(written.len(), 4);
    let svg = fs::read_to_string(dir.path().join("plot.svg")).unwrap();
    assert!(svg.contains("5.1000") && !svg.contains("NaN") && !svg.contains("HellaSwag"));
}

#[test]
fn runs_are_compared_in_one_picture() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = ["first", "second"].map(|name| dir.path().join(name));
    for (dir, steps) in dirs.iter().zip([200, 400]) {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("metrics.jsonl"), run(steps)).unwrap();
    }
    let to = dir.path().join("both");
    let written = compare_runs(&dirs, &to).unwrap();
    assert_eq!(written, [to.with_extension("svg"), to.with_extension("png")]);
    let svg = fs::read_to_string(&written[0]).unwrap();
    for text in
        ["first:  lowest validation loss ", "second:  lowest ", "Throughput, smoothed", "HellaSwag, acc_norm"]
    {
        assert!(svg.contains(text), "{text}");
    }
    assert_eq!(png_size(&written[1]).0, 2 * 2 * 640);
    let many = vec![dirs[0].clone(); 8];
    let error = compare_runs(&many, &to).unwrap_err().to_string();
    assert_eq!(error, "plot: expected at most 7 runs in one picture, found 8");
    let missing = [dirs[0].clone(), dir.path().join("third")];
    assert!(format!("{:#}", compare_runs(&missing, &to).unwrap_err()).contains("third/metrics.jsonl"));
}

#[test]
fn a_task_is_drawn_with_the_chance_that_its_lines_tell() {
    let dir = tempfile::tempdir().unwrap();
    let line = "{\"step\":5,\"piqa_acc\":0.61,\"piqa_acc_norm\":0.62,\"piqa_chance\":0.5}\n";
    fs::write(dir.path().join("metrics.jsonl"), line).unwrap();
    assert_eq!(plot_run(dir.path()).unwrap().len(), 4);
    let svg = fs::read_to_string(dir.path().join("piqa_accuracy.svg")).unwrap();
    for text in ["chance: 0.5", "highest acc_norm 0.6200 at step 5, acc 0.6100 at step 5"] {
        assert!(svg.contains(text), "{text}");
    }
}
