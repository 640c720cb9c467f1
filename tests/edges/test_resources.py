import pytest

from metergate.edges import resources


def test_names_are_parsed_into_what_they_were_made_of() -> None:
    assert resources.parse_model(resources.model_name("qwen3-0.6b")) == "qwen3-0.6b"
    assert resources.parse_app(resources.app_name("workbuddy")) == "workbuddy"
    assert resources.parse_wallet(resources.wallet_name("zhang")) == "zhang"
    assert resources.parse_subscriber("subscribers/zhang") == "zhang"
    assert resources.parse_charge(resources.charge_name("zhang", "c1")) == ("zhang", "c1")
    for grant_id in ("june", "rollover:june", "refund-of-june:r-1", "refund:r-1", "adjustment:a.1"):
        assert resources.parse_grant(resources.grant_name("zhang", grant_id)) == ("zhang", grant_id)


def test_what_is_not_there_has_no_name() -> None:
    assert resources.app_name("") == ""
    assert resources.charge_name("zhang", None) == ""
    assert resources.charge_name("zhang", "") == ""


@pytest.mark.parametrize(
    "name",
    [
        "",
        "small",
        "models/",
        "models/a/b",
        "models/../x",
        "models/-a",
        "models/a\n",
        "models/" + "a" * 129,
        "models/模",
    ],
)
def test_what_is_no_models_name_is_refused(name: str) -> None:
    assert resources.parse_model(name) is None


@pytest.mark.parametrize(
    "grant_id", ["", "other:june", ":june", "rollover:", "rollover:refund:r-1", "refund-of-:r-1", "a/b"]
)
def test_what_is_no_grants_name_is_refused(grant_id: str) -> None:
    assert resources.parse_grant(f"subscribers/zhang/grants/{grant_id}") is None


@pytest.mark.parametrize("name", ["subscribers/zhang", "subscribers/zhang/charges/", "subscribers//charges/c1"])
def test_what_is_no_charges_name_is_refused(name: str) -> None:
    assert resources.parse_charge(name) is None
