"""What the benchmark pages say, computed from results/tables.

A function returns the sentences of a page that hold a measured number, as the tables give them now,
and asserts what the page says without a number.
"""

from collections.abc import Callable

import pandas as pd

from tests.helpers.command import ROOT

MEAN = "mean of the targets"
SO_MODES = {mode: f"engine_{mode}" for mode in ("fast", "balanced", "small")}


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "results" / "tables" / f"{name}.csv")


def behind(table: pd.DataFrame, first: str, second: str) -> tuple[float, float]:
    """Return the mean over seeds of `first` minus `second`, and its standard error."""
    by_seed = table.groupby(["method", "seed"])["accuracy_percent"].mean()
    difference = by_seed[first] - by_seed[second]
    return difference.mean(), difference.sem()


def methods() -> list[str]:
    digits, textile = read("digits_methods"), read("textile_methods")
    means = digits.groupby(["method", "shots"])["accuracy_percent"].mean()
    zero_shot, on_fabric = (
        table["zero_shot_accuracy_percent"].iloc[0] for table in (digits, textile)
    )
    gains = [means[method].mean() - zero_shot for method in ("coop", "cocoop", "delora")]
    for one, other in (("relora", "lora"), ("adam", "adamw")):
        assert (means[one] == means[other]).all(), one
    above = textile.groupby(["method_title", "shots"])["accuracy_percent"].mean()
    above = above[above > 50]
    assert set(above.index) == {(name, 16) for name in ("WiSE-FT", "LoHa", "LoRA", "ReLoRA")}
    adamw, lora, fabric = (
        behind(digits, "so", "adamw"),
        behind(digits, "so", "lora"),
        behind(textile, "so", "adamw"),
    )
    base = read("digits_advantage").query("shots == 1 and density_ratio == 5e-4")
    return [
        f"its accuracy is {zero_shot:.1f} %",
        f"The accuracy of zero-shot is {on_fabric:.1f} %",
        f"at most {max(gains):.1f} points above zero-shot",
        f"{-adamw[0]:.1f} ± {adamw[1]:.1f} points below dense AdamW",
        f"{-lora[0]:.1f} ± {lora[1]:.1f} points below LoRA on the same matrices",
        f"SO reaches {base['accuracy_percent'].item():.1f} % at 1 shot",
        f"SO is {fabric[0]:.1f} ± {fabric[1]:.1f} points above dense AdamW",
    ]


def density_and_refresh() -> list[str]:
    table = read("digits_kappa_t")
    cells = table.groupby(["density_ratio", "T"])["accuracy_percent"].agg(["mean", "std"])
    density, T = cells["mean"].idxmax()
    assert (density, T) == (1e-2, 10)
    means = cells["mean"].unstack("T")
    assert (means.loc[5e-4] == means.min()).all()
    assert means.loc[1.0].nunique() == 1
    return [
        f"The best cell is κ = 1e-2 with T = 10, at {cells['mean'].max():.1f} %.",
        f"The standard deviations over seeds reach {cells['std'].max():.1f} points.",
    ]


def advantage() -> list[str]:
    table = read("digits_advantage").query("contender == 'so'")
    table = table.set_index(["factor", "density_ratio"])
    points, errors = table["minus_adamw_points"], table["minus_adamw_standard_error"]
    is_significant = points.abs() > 4.3 * errors
    assert is_significant["base", 5e-4]
    assert is_significant["base", 1e-2]
    assert not is_significant["base", 1e-1]
    assert points["base", 1.0] == 0
    shots = table.assign(significant=is_significant).loc["shots"]
    shots = shots.reset_index().set_index(["density_ratio", "shots"])
    assert shots["significant"].to_dict() == {
        (5e-4, 1): False, (1e-2, 1): False, (5e-4, 16): False, (1e-2, 16): True,
    }  # fmt: skip
    assert shots["seeds_ahead"][5e-4, 1] == 3
    assert not is_significant[["steps"]].any()
    classes = table.loc["classes"]
    assert (points["classes"].abs() <= errors["classes"]).all()
    assert (classes.query("classes == 2")["zero_shot_accuracy_percent"] == 100).all()
    blank = table.loc["pretraining_pictures"]
    for density in (5e-4, 1e-2):
        larger = blank["minus_adamw_points"][density] / points["base", density]
        assert (larger > 1).all()
    wide = read("digits_advantage").query("density_ratio == 5e-4 and pretraining_pictures == 12800")
    assert wide.sort_values("width")["minus_adamw_points"].is_monotonic_increasing
    largest = blank[blank["minus_adamw_points"] == blank["minus_adamw_points"].max()].iloc[0]
    return [
        f"SO is {-points['base', 5e-4]:.1f} ± {errors['base', 5e-4]:.1f} points behind",
        f"and {points['base', 1e-2]:.1f} ± {errors['base', 1e-2]:.1f} points ahead at κ = 1e-2",
        f"The largest is {largest['minus_adamw_points']:.1f} ± "
        f"{largest['minus_adamw_standard_error']:.1f} points for κ = 1e-2.",
    ]


def engine_cpu() -> list[str]:
    steps = by_contender("engine_steps_cpu", "step_seconds")
    cost, flops = by_contender("engine_cost_cpu", "peak_memory_mib"), read("engine_cost_cpu")
    assert (steps["engine_fast"] < steps["adamw"]).all()
    assert (steps["engine_fast"] < steps["lora"]).all()
    for dataset in ("sun397", "imagenet"):
        row = steps.loc[dataset]
        assert row["adamw"] < row["engine_balanced"] < row["lora"]
        assert "extrapolated" in _note(dataset)
    for mode, lora in (("fast", "lora"), ("balanced", "lora_balanced"), ("small", "lora_small")):
        own, other = cost[SO_MODES[mode]].dropna(), cost[lora].dropna()
        assert len(own) == len(other) == 4
        assert (own < other).all()
    less = flops.query("contender == 'engine_balanced'").set_index("dataset")
    less = less["flops_below_reference_percent"]
    slower = steps["reference"] / steps["engine_balanced"]
    share = {mode: 100 * cost[name] / cost["reference"] for mode, name in SO_MODES.items()}
    check = (read("engine_memory_check_cpu")["fake_by_real"] - 1).abs().max()
    optimizer = read("engine_optimizer_cpu").set_index(["contender", "density"])
    so = optimizer.loc[("engine_balanced", 5e-4)]
    return [
        f"The reference takes {slower['eurosat']:.1f} times as long as SO with `memory=balanced` "
        f"on EuroSAT, {slower['dtd']:.1f} times on DTD, {slower['sun397']:.0f} times on SUN397 and "
        f"{slower['imagenet']:.0f} times on ImageNet.",
        f"SO needs {less['mean of 11']:.1f} % fewer operations than the reference on average over "
        f"the 11 datasets, and {less['imagenet']:.1f} % fewer on ImageNet.",
        *_shares(share),
        f"they differ by at most {100 * check:.1f} % from the peaks of real steps",
        f"At 5e-4 SO's step is {so['times_faster_than_adamw']:.1f} times as fast as fused AdamW, "
        f"and {so['times_faster_than_reference']:.0f} times as fast as the reference.",
    ]


def engine_cpu_more() -> list[str]:
    scaling = read("engine_scaling_cpu").query(
        "axis == 'classes' and contender.str.contains('eng')"
    )
    peak = scaling.set_index("value")["peak_memory_mib"]
    convolutions = read("sampled_convolutions_cpu").query("method == 'gather'")
    few = convolutions.query("density <= 0.005")
    assert (few["times_faster_than_dense"] > 1).all()
    assert (few["chosen"] == "yes").all()
    assert not (convolutions.query("density > 0.005")["chosen"] == "yes").any()
    crops = read("engine_crops_cpu")
    assert (crops["share_that_differs"] == 0).all()
    assert (crops.query("used")["way"] == "torchvision, image by image").all()
    return [f"SO's peak grows by {peak['1000'] - peak['100']:.0f} MiB with `memory=balanced`."]


def engine_gpu() -> list[str]:
    peaks = by_contender("engine_peaks_cuda", "peak_memory_mib")
    steps = by_contender("engine_steps_cuda", "step_seconds")
    less = [
        1 - peaks[SO_MODES[mode]] / peaks[lora]
        for mode, lora in (("fast", "lora"), ("balanced", "lora_balanced"), ("small", "lora_small"))
    ]
    lowest, highest = min(map(min, less)), max(map(max, less))
    assert (steps["lora"] < steps["engine_fast"]).to_dict() == {
        "eurosat": True, "dtd": True, "sun397": False, "imagenet": False,
    }  # fmt: skip
    even = (steps["reference"] / steps["engine_fast"]).drop("imagenet")
    assert even.between(1, 1.1).all()
    assert steps["reference"]["imagenet"] < steps["engine_fast"]["imagenet"]
    table = read("engine_steps_cuda")
    varies = (table["step_seconds_max"] / table["step_seconds_min"]).max()
    dense = steps["engine_fast"] / steps["adamw"]
    chunks = steps["engine_balanced"] / steps["engine_fast"]
    optimizer = read("engine_optimizer_cuda").set_index(["contender", "density"])
    ms = 1000 * optimizer["median_seconds"]
    launches = by_contender("engine_launches", "step_operations")
    fewer = {mode: (launches[name] < launches["adamw"]).all() for mode, name in SO_MODES.items()}
    assert fewer == {"fast": True, "balanced": False, "small": False}
    assert (launches["engine_small"] > launches["reference"]).to_dict() == {
        "eurosat": False, "dtd": False, "sun397": True, "imagenet": True,
    }  # fmt: skip
    outside = read("engine_launches").set_index("contender")
    whole = outside["outside_graph_operations"].dropna().unique()
    draws = outside["outside_graph_draw_operations"]["engine_fast"].unique()
    share = {mode: 100 * peaks[name] / peaks["reference"] for mode, name in SO_MODES.items()}
    return [
        *_shares(share),
        f"In each mode SO needs {100 * lowest:.0f} to {100 * highest:.0f} % less than CLIP-LoRA in "
        "the same mode.",
        f"it takes {dense.min():.1f} to {dense.max():.1f} times as long as dense AdamW",
        f"Steps of one contender vary up to a factor of {varies:.1f}.",
        f"SUN397 and ImageNet take {chunks['sun397']:.1f} and {chunks['imagenet']:.1f} times as "
        "long as with `memory=fast`.",
        f"SO's step takes {ms['engine_balanced', 5e-4]:.1f} ms, the reference's "
        f"{ms['reference', 5e-4]:.1f} ms and fused AdamW's {ms['adamw', 1.0]:.1f} ms.",
        f"This took {optimizer['drawing_seconds']['reference', 5e-4]:.1f} seconds per draw",
        f"{whole.item():.0f} operations stay outside its graph, and {draws.item():.0f} in a step",
    ]


def adapters_and_reports() -> list[str]:
    last = read("adapters_cpu").set_index("steps").loc[2000]
    decode = read("decode_cache_cpu").set_index(["backbone", "way"])["times_less_than_decoding"]
    page = read("report_scale_cpu").set_index("what").loc["page"]
    real = "ViT-B-32-quickgelu"
    encoded = decode[:, "from the cache, encoded"]
    return [
        f"After 2,000 steps it takes {last['file_mib']:.1f} MiB; the whole model takes "
        f"{last['checkpoint_mib']:.1f} MiB.",
        f"takes {decode[real, 'looked up']:.0f} times less processor time than decoding it",
        f"A whole evaluation takes {encoded['tiny']:.1f} times less with the embedded CLIP, and "
        f"{encoded[real]:.2f} times less with ViT-B/32.",
        f"The page of this report has {page['page_mb']:.1f} MB and appears after "
        f"{page['first_paint_seconds']:.1f} seconds",
    ]


def smat() -> list[str]:
    tasks = read("smat_tasks").query("dataset == @MEAN").set_index("contender")
    masks = read("smat_masks").query("dataset == @MEAN").set_index("contender")
    placed = read("smat_placement")
    kept = (placed["kept_share"] * placed["entries"]).groupby(placed["role"]).sum()
    kept = 100 * kept / placed.groupby("role")["entries"].sum()
    overlap = read("smat_overlap")["overlap"]
    merge, learned = tasks.loc["smat_prototype"], masks.loc["smat_masks"]
    accuracy = tasks["accuracy_percent"]
    assert accuracy["smat_adamw"] > accuracy["prototypes_adamw"]
    by_mask = masks["accuracy_percent"]
    assert by_mask["sparse_attention"] > by_mask["smat_masks"] > by_mask["sparta"]
    moving = masks.loc["so_moving"]
    assert abs(moving["minus_sparta_points"]) < moving["minus_sparta_interval"]
    gain = read("smat_tasks").query("contender == 'smat_prototype'").set_index("dataset")
    gain = gain["minus_prototypes_points"]
    assert gain["georgian_letters"] > 0
    assert gain["scenes"] > 0
    assert gain["colour_pairs"] < 0
    both = (placed["kept_share"] * placed["entries"]).groupby(placed["expert"]).sum()
    both = (both / placed.groupby("expert")["entries"].sum()).mean()
    return [
        f"It is {merge['minus_prototypes_points']:.1f} ± "
        f"{merge['minus_prototypes_interval']:.1f} points above prototypes.",
        f"attention's output projection: {kept['attention_out']:.0f} % of its entries",
        f"They keep {kept['attention_in']:.0f} % of attention's input, {kept['mlp_out']:.0f} % of "
        f"the second matrix of the MLP, and {kept['mlp_in']:.0f} % of the first.",
        f"Any two experts share {overlap.min():.2f} to {overlap.max():.2f} of the entries",
        f"Random masks of these sizes would share {both**2 / (2 * both - both**2):.2f}.",
        f"The learned places are {learned['minus_sparta_points']:.1f} ± "
        f"{learned['minus_sparta_interval']:.1f} points above random places.",
    ]


def rte() -> list[str]:
    table, tests = read("rte_methods"), read("rte_tests")
    majority = table["majority_percent"].iloc[0]
    means = table["accuracy_percent"]
    assert (means <= majority).all()
    assert table["items_low_percent"].lt(majority).all()
    assert table["items_high_percent"].gt(majority).all()
    assert (tests["p_holm"] > 0.05).all()
    assert (tests.groupby("test").size() == 45).all()
    cells = read("rte_kappa_t")["accuracy_percent"].value_counts()
    assert [*cells] == [11, 1]
    assert abs(cells.index[0] - cells.index[1]) * 277 / 100 < 1.1
    rates = read("rte_rates").query("method != 'so' and method != 'head'")
    chosen = rates[rates["is_chosen"]].set_index("title")["lr"].sort_index()
    assert (chosen == rates.groupby("title")["lr"].max()).all()
    so = means[table["method"] == "so"]
    return [
        f"The larger class has {majority:.1f} % of the pairs.",
        f"The means differ by at most {means.max() - means.min():.1f} points",
        f"SO's densities differ by {so.max() - so.min():.1f} points",
    ]


def by_contender(name: str, value: str) -> pd.DataFrame:
    order = ["eurosat", "dtd", "sun397", "imagenet"]
    return read(name).pivot_table(index="dataset", columns="contender", values=value).reindex(order)


def _note(dataset: str) -> str:
    steps = read("engine_steps_cpu").query("contender == 'reference'").set_index("dataset")
    return str(steps["note"][dataset])


def _shares(share: dict[str, pd.Series]) -> list[str]:
    balanced, small = share["balanced"], share["small"]
    return [
        f"it needs {small['eurosat']:.1f} % and {small['imagenet']:.1f} %",
        f"needs {balanced['eurosat']:.1f} % of the reference on EuroSAT and "
        f"{balanced['imagenet']:.1f} % on ImageNet",
    ]


CLAIMS: dict[str, Callable[[], list[str]]] = {
    claims.__name__: claims
    for claims in (
        methods, density_and_refresh, advantage, engine_cpu, engine_cpu_more, engine_gpu,
        adapters_and_reports, smat, rte,
    )
}  # fmt: skip
