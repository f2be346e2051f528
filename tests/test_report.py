"""Tables written from result rows: the README says what the files say."""

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.report import render, report

ROOT = Path(__file__).parents[1]
ROWS = (
    "model,parameters,train_images,epochs,test_accuracy\n"
    "small,1000,12000,5,0.80\nbig,2000,12000,5,0.90\nsmall,1000,12000,5,0.82\n"
)


def document(kind: str = "accuracy", source: str = "rows.csv") -> str:
    return f"before\n<!-- table {kind} {source} -->\nstale 12.34\n<!-- end of table -->\nafter\n"


def test_table_is_written_from_the_rows_and_again_the_same(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    page = tmp_path / "page.md"
    page.write_text(document())
    assert report(page) == 1
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    # Mean 81, deviation sqrt(2), two seeds: 12.706 * sqrt(2) / sqrt(2).
    assert lines[2:] == [
        "| big | 2,000 | 12,000 x 5 | 90.00 | 90.00 |",
        "| small | 1,000 | 12,000 x 5 | 81.00 ± 12.71 | 80.00 82.00 |",
    ]
    report(page)
    assert page.read_text() == text


@pytest.mark.parametrize(
    ("text", "words"),
    [(document(kind="speed"), "no table of kind 'speed'"), (document(source="none.csv"), "no rows")],
    ids=["kind", "file"],
)
def test_table_that_cannot_be_made(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(ValueError, match=words):
        report(tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() == text


def test_pages_are_named_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text(ROWS)
    page = tmp_path / "page.md"
    page.write_text(document())
    assert main(["report", str(page)]) == 0
    assert capsys.readouterr().out == f"1 tables written in {page}\n"
    assert main(["report", "nowhere.md"]) == 1
    assert capsys.readouterr().err == "benchmarks report: there is no file nowhere.md\n"
    assert main(["tables"]) == 1
    assert "say which: python -m benchmarks accuracy" in capsys.readouterr().err


def test_no_such_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        report(tmp_path / "page.md")


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *(ROOT / f"docs/{name}.md" for name in ("latency", "results", "trial", "operators"))],
    ids=lambda page: page.name,
)
def test_pages_agree_with_the_results(page: Path) -> None:
    text = page.read_text()
    assert text.count("<!-- table ") >= 1
    assert render(text, page.parent) == text


def test_operators_and_networks_tables(tmp_path: Path) -> None:
    columns = "what,channels,k,side,batch,dtype,layout,variant,median_ms,saved_mib\n"
    shape = "96,16,14,32,float32,nchw"
    (tmp_path / "ops.csv").write_text(
        columns
        + f"module step,{shape},fused,2,5\nmodule step,{shape},textbook,7,20\n"
        + f'module step,{shape},"textbook, compiled",5,\nmodule step,{shape},"slices, compiled",4,\n'
        + f"module step,{shape},inverted bottleneck's expansion,3,8\n"
        + f"module step,{shape},Conv1x1 + BatchNorm alone,1,4\n"
        + f'expansion alone,{shape},"forward, fused",2,\nexpansion alone,{shape},"forward, copy",1,\n'
        + f'expansion alone,{shape},"backward, fused",4,\nexpansion alone,{shape},"backward, copy",2,\n'
        + f"sweep,{shape},fused,9,\n"
    )
    text = render(document("operators", "ops.csv"), tmp_path)
    assert "| 96, 16, 14x14, 32, float32, nchw | 2.00 | 3.5 | 2.0 | 1.5 | 0.50 | 4.0 | 2.0 |" in text
    (tmp_path / "nets.csv").write_text(
        "what,layout,batch,model,median_ms,lower_quartile_ms,upper_quartile_ms\n"
        "eval latency,nchw,1,ours,99,99,99\neval latency,nchw,1,ours,10,9,12\neval latency,nchw,1,theirs,8,7,9\n"
    )
    text = render(document("networks", "nets.csv"), tmp_path)
    assert "| eval latency, batch 1, nchw | ours | 10.0 | 9.0 to 12.0 | 1.00 |" in text  # a later row counts
    assert "| theirs | 8.0 | 7.0 to 9.0 | 0.80 |" in text


def test_search_tables(tmp_path: Path) -> None:
    (tmp_path / "price.csv").write_text(
        "what,space,median_ms,lower_quartile_ms,upper_quartile_ms,peak_mib\n"
        "S,tiny,200,190,210,700\nrandom paths,tiny,220,200,240,770\n"
    )
    text = render(document("search-price", "price.csv"), tmp_path)
    assert "| random paths (tiny) | 220 | 200 to 240 | 1.10 | 1.10 |" in text
    (tmp_path / "check.csv").write_text("space,predicted_ms,measured_ms\ntiny,1.1,1\ntiny,2.1,2\ntiny,2.9,3\n")
    text = render(document("search-prediction", "check.csv"), tmp_path)
    assert "| tiny | 3 | 1.0 to 3.0 | 1.000 | 5.0% |" in text
    (tmp_path / "runtimes.csv").write_text(
        "space,runtime,selections,predicted_ms,measured_ms\ntiny,openvino,fixed,1.1,1\ntiny,openvino,fixed,2.2,2\n"
        "tiny,onnxruntime,fixed,1,1\ntiny,onnxruntime,fixed,2,2\n"
    )
    text = render(document("search-prediction", "runtimes.csv"), tmp_path)
    assert "| tiny, openvino, fixed | 2 | 1.0 to 2.0 | 1.000 | 10.0% |" in text
    assert "| tiny, onnxruntime, fixed | 2 | 1.0 to 2.0 | 1.000 | 0.0% |" in text
    (tmp_path / "comparison.csv").write_text(
        "network,group,measured_ms,accuracy\nf0,found,3.9,0.86\nf1,found,4.1,0.86\n"
        "r0,random,4,0.84\nr1,random,4,0.84\nS,published,5,0.85\nS,published,5,0.85\n"
    )
    text = render(document("search-comparison", "comparison.csv"), tmp_path)
    assert "| found | 2 (2) | 3.90 to 4.10 | 86.00 ± 0.00 |  |" in text
    assert "| published | 1 (2) | 5.00 | 85.00 ± 0.00 | +1.00 ± 0.00 |" in text
    (tmp_path / "kinds.csv").write_text(
        "position,channels,side,kind,confidence,chance\n1,8,4,kernel 2,1,1\n"
        "2,12,4,ach,0.5,0.4\n2,12,4,ghost,0.5,0.6\n2,12,4,ach,0.7,0.4\n2,12,4,ghost,0.3,0.6\n"
    )
    text = render(document("search-kinds", "kinds.csv"), tmp_path)
    assert "| 2: 12 channels, 4x4 | 0.60 (0.40) | 0.40 (0.60) |" in text
    assert "kernel" not in text


def test_deployment_tables(tmp_path: Path) -> None:
    (tmp_path / "latency.csv").write_text(
        "session,runtime,isa,threads,batch,image_size,model,median_ms,lower_quartile_ms,upper_quartile_ms,macs,bytes\n"
        "a,onnxruntime,native,2,1,64,mobilenetv4_conv_medium,1,1,1,6000000,\n"
        "b,onnxruntime,native,2,1,64,folder/found.json:frozen,3,2,4,5000000,2097152\n"
        "b,onnxruntime,native,2,1,64,mobilenetv4_conv_small,2,1,3,6000000,\n"
        "b,openvino,avx2,2,1,64,mobilenetv4_conv_small,9,9,9,6000000,\n"
    )
    text = render(document("latency", "latency.csv"), tmp_path)
    place = "onnxruntime, 2 threads, batch 1, 64x64"
    assert f"| {place} | found:frozen | 3.00 | 2.00 to 4.00 | 1.50 |  | 5 | 2.0 |" in text
    assert "| openvino (avx2), 2 threads, batch 1, 64x64 |" in text
    assert "medium |" not in text.split("---", 1)[1]  # of an earlier session
    text = render(document("latency-summary", "latency.csv"), tmp_path)
    assert f"| ms (ratio to each rival) | {place} | openvino (avx2), 2 threads, batch 1, 64x64 |" in text
    assert "| found:frozen | 3.00 (1.50) |  |" in text
    assert "| mobilenetv4_conv_small | 2.00 (1.00) | 9.00 (1.00) |" in text
    (tmp_path / "parity.csv").write_text(
        "source,format,selections,images,top1,relative_error,near_ties\n"
        "a,onnx,fixed,1000,1.0,1e-06,7\nb,onnx,fixed,900,0.999,2e-05,1\na,onnx,fixed,1000,1.0,3e-06,0\n"
    )
    text = render(document("parity", "parity.csv"), tmp_path)
    assert "| onnx, fixed | a, b | 900 | 99.90% | 2.0e-05 | 1 |" in text
    (tmp_path / "deployment.csv").write_text(
        "model,seed,variant,test_accuracy,lost_points\n"
        "S,0,dynamic,0.80,0\nS,1,dynamic,0.82,0\nS,0,frozen,0.79,1\nS,1,frozen,0.82,0\n"
    )
    text = render(document("deployment", "deployment.csv"), tmp_path)
    assert "| S | frozen | 80.50 ± 19.06 | +0.50 ± 6.35 | +1.00 +0.00 |" in text


def test_regimes_side_by_side_with_differences_to_the_base(tmp_path: Path) -> None:
    head = "model,parameters,seed,test_accuracy\n"
    floor = "logistic regression,10,0,0.2\n"
    (tmp_path / "accuracy-one.csv").write_text(
        head + floor + "net@0a,100,0,0.80\nnet:static@0b,90,0,0.85\nnet@0a,100,1,0.82\nnet:static@0b,90,1,0.87\n"
    )
    (tmp_path / "accuracy-two.csv").write_text(
        head + floor + "net@0a,100,0,0.50\nnet@0a,100,1,0.50\nother,70,0,0.61\n"
    )
    page = tmp_path / "page.md"
    page.write_text(document("trial", "accuracy-one.csv,accuracy-two.csv"))
    report(page)
    text = page.read_text()
    assert "From `accuracy-one.csv`, `accuracy-two.csv`." in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| network | parameters | one | two |"
    # Two seeds each with deviations of sqrt(2): Welch's has 2 degrees of freedom, 4.3027 * sqrt(2).
    assert lines[2:] == [
        "| net:static | 90 | 86.00 ± 12.71 (+5.00 ± 6.08) |  |",
        "| net | 100 | 81.00 ± 12.71 | 50.00 ± 0.00 |",
        "| other | 70 |  | 61.00, 1 seed |",
        "| logistic regression | 10 | 20.00 | 20.00 |",
    ]
    page.write_text(document("trial", "accuracy-one.csv,none.csv"))
    with pytest.raises(ValueError, match=r"none\.csv has no rows"):
        report(page)


def test_stability_is_that_of_the_last_epoch_of_each_network(tmp_path: Path) -> None:
    columns = "kurtosis,normed_largest,gradient,val_accuracy"
    rows = [f"a,dysoft,{epoch},{layer},{epoch + layer},1,nan,0.5" for epoch in (0, 1) for layer in (1, 2, 3)]
    rows += ["b,dysoft,0,1,100,1,1,0.25", "b,dysoft,1,1,nan,1,1,0.25"]
    (tmp_path / "rows.csv").write_text("\n".join([f"model,norm,epoch,layer,{columns}", *rows, ""]))
    page = tmp_path / "page.md"
    page.write_text(document("stability"))
    report(page)
    assert [line for line in page.read_text().splitlines() if "dysoft" in line] == [
        "| a | dysoft | 2 | 3 | 1 | not finite | 0.5 |",
        "| b | dysoft | 2 | not finite | 1 | 1 | 0.25 |",
    ]


def test_two_networks_of_one_name_are_no_table(tmp_path: Path) -> None:
    rows = "model,parameters,seed,test_accuracy\nnet@1,10,0,0.5\nnet@2,10,0,0.6\n"
    (tmp_path / "accuracy-one.csv").write_text(rows)
    page = tmp_path / "page.md"
    page.write_text(document("trial", "accuracy-one.csv"))
    with pytest.raises(ValueError, match="two networks of one name"):
        report(page)
    (tmp_path / "accuracy-one.csv").write_text(
        "model,parameters,seed,test_accuracy\nlogistic regression,1,0,0.5\n"
    )
    assert report(page) == 1


def test_costs_stand_beside_accuracies_by_the_networks_names(tmp_path: Path) -> None:
    (tmp_path / "accuracy-x.csv").write_text(
        "model,parameters,test_accuracy\nnet@1a2b,100,0.5\nnet:static@3c4d,90,0.7\nnearest neighbour,0,0.4\n"
    )
    (tmp_path / "latency.csv").write_text(
        "model,runtime,image_size,threads,macs,products,median_ms\n"
        "some/net.json,onnxruntime,64,1,2000000,3000,9\n"  # of a session that did not time both
        "some/net.json,onnxruntime,64,1,2000000,3000,2\nsome/net.json:static,onnxruntime,64,1,1000000,3000,1\n"
    )
    (tmp_path / "steps.csv").write_text(
        "what,model,image_size,threads,layout,median_ms\n"
        "training step,some/net.json,64,1,channels_last,10\n"
        "training step,some/net.json:static,64,1,channels_last,8\n"
    )
    text = render(document("costs", "accuracy-x.csv,latency.csv,steps.csv"), tmp_path)
    assert "| net:static | 90 | 1.0 | 3.0 | 0.80 | 0.50 | 70.00 | +20.00 | 1 |" in text
    assert "| net | 100 | 2.0 | 3.0 | 1.00 | 1.00 | 50.00 |  | 1 |" in text
    assert "| nearest neighbour | 0 |  |  |  |  | 40.00 |  | 1 |" in text
    text = render(document("costs", "accuracy-x.csv"), tmp_path)
    assert "| net:static | 90 |  |  |  |  | 70.00 | +20.00 | 1 |" in text


@pytest.mark.parametrize(
    ("accuracies", "latencies", "words"),
    [
        ("net@1,1,0.5\nnet@2,1,0.7\n", "a/net.json,o,64,1,1,1,2\n", "two networks of one name"),
        ("net@1,1,0.5\n", "a/net.json,o,64,1,1,1,2\nb/net.json,o,64,1,1,1,3\n", "two networks of one name"),
        ("net@1,1,0.5\n", "net,o,64,1,1,1,2\nnet,p,64,1,1,1,3\n", "one runtime, and these rows are of o, p"),
        ("net@1,1,0.5\n", "net,o,64,1,1,1,2\nnet,o,64,2,1,1,3\n", "one threads, and these rows are of 1, 2"),
    ],
)
def test_costs_that_cannot_be_compared(tmp_path: Path, accuracies: str, latencies: str, words: str) -> None:
    (tmp_path / "accuracy-x.csv").write_text(f"model,parameters,test_accuracy\n{accuracies}")
    (tmp_path / "l.csv").write_text(f"model,runtime,image_size,threads,macs,products,median_ms\n{latencies}")
    with pytest.raises(ValueError, match=words):
        render(document("costs", "accuracy-x.csv,l.csv"), tmp_path)


def test_tables_of_what_a_search_found(tmp_path: Path) -> None:
    (tmp_path / "shipped.csv").write_text(
        "network,weights,parameters,macs,image_size,train_images,epochs,test_accuracy,test_images\n"
        "net,digits,1000,2500000,64,100,3,0.5,10\nnet,digits,1000,2500000,64,100,3,0.7,10\n"
    )
    text = render(document("shipped", "shipped.csv"), tmp_path)
    assert "| net.digits | 1,000 | 2.5, 64x64 | 100 x 3 | 70.00 of 10 |" in text
    rows = "".join(f"a,star,random-{n},0.{n}1,0.{n}\n" for n in range(1, 8)) + "a,star,found,0.9,0.95\n"
    (tmp_path / "ranking.csv").write_text(f"search,space,network,supernet_accuracy,accuracy\n{rows}")
    text = render(document("ranking", "ranking.csv"), tmp_path)
    assert "| star | 7 | 1.00 (" in text
    assert "| 70.00 | 95.00 |" in text
