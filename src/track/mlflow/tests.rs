use super::*;

#[test]
fn numbers_are_those_of_json_and_protocol_buffers() {
    let texts = [0.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(|value| number(value).to_string());
    assert_eq!(texts, ["0.1", "\"NaN\"", "\"Infinity\"", "\"-Infinity\""]);
    assert_eq!(
        metric("rss_bytes", 1048.576e6),
        ("system/process_memory_usage_megabytes".to_owned(), 1048.576)
    );
    assert_eq!(metric("val_loss", 2.0), ("val_loss".to_owned(), 2.0));
    assert_eq!(millis(1_700_000_000.250_6), 1_700_000_000_251);
}

#[test]
fn names_and_texts_fit_mlflow() {
    assert_eq!(plain("max_sequence_length T"), "max_sequence_length T");
    assert_eq!(plain("a:b(c)é/d.e-f"), "a_b_c__/d.e-f");
    assert_eq!(cut("short"), "short");
    let long = "é".repeat(300);
    assert_eq!(cut(&long), "é".repeat(250));
    assert_eq!(cut(&format!("a{long}")).len(), MOST_TEXT - 1);
}
