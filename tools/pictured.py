"""The service that pictures are taken of: real work on sample files, for users who have signed in.

All that is shown comes about as it does for users, except a day of history: see `a_day`.
"""

import asyncio
import base64
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from math import pi, sin
from pathlib import Path
from typing import Any

from servicex_server.database import service_history
from servicex_server.database.connection import Database
from servicex_server.model import now
from tests.e2e.test_accounts import command
from tests.identity_provider import IdentityProvider
from tests.integration.servers import put, xrootd
from tests.support import Server, plug_in, sample, until

FOLDER = Path(tempfile.gettempdir()) / "data"
"""Where the files are that are asked for: it is seen in the pictures."""

DATASET = (
    "mc23_13p6TeV.601189.PhPy8EG_AZNLO_Zmumu.deriv.DAOD_PHYSLITE"
    ".e8514_s4162_d1911_r15224_r15225_p6491_tid41892345_00"
)

ISSUERS = {"lab": "The Lab", "university": "Home University"}

USERS = {
    "ada@lab.org": "Ada Lindqvist",
    "jo@lab.org": "Jo Müller",
    "kim.seo-yeon@university.edu": "Kim Seo-yeon",
    "maria-jose.nunez-de-la-pena@particle-physics.university.edu": "María-José Núñez de la Peña",
    "t.okafor@university.edu": "Tunde Okafor",
}

HALTS = """
import pathlib, time

def run_query(path):
    number = int(pathlib.Path(path).stem.rpartition("-")[2])
    while number > {stands}:
        time.sleep(0.05)
    return {{"n": [1]}}
"""
"""A query that stands, so that there are pictures of requests that run."""

CATALOGUE = """
import asyncio
import json
from pathlib import Path

from servicex_server.errors import DatasetError
from servicex_server.finders.contract import Finder
from servicex_server.model import InputFile, Replica

SITES = ("PARIS_DATADISK", "OSAKA_DATADISK")


class Catalogue(Finder):
    scheme = "catalogue"

    async def find(self, reference):
        path = Path("{folder}", reference)
        if not path.exists():
            raise DatasetError(f"catalogue: there is no dataset {{reference}}")
        text = await asyncio.to_thread(path.read_text)
        for number, urls in enumerate(json.loads(text)):
            replicas = tuple(Replica(url, site) for url, site in zip(urls, SITES))
            yield InputFile(replicas, name=f"mc23:{{number}}")
"""
"""A finder as a package brings it: files have replicas at two sites."""

STANDS = 26
"""Files after which such a request stands."""

STOPPED = 10
"""Files after which one is cancelled."""

WORKERS = 5


def query(columns: str, tree: str = "events") -> str:
    """Return a query for columns."""
    return json.dumps([{"treename": tree, "filter_name": columns.split()}])


@contextmanager
def service() -> Iterator[tuple[Server, IdentityProvider]]:
    """Run a service with a day behind it, and who vouches for its users."""
    users = {
        email: {"email": email, "email_verified": True, "name": name}
        for email, name in USERS.items()
    }
    FOLDER.mkdir()  # which fails if somebody else has it
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, FOLDER)
        provider = IdentityProvider(users=users).start()
        stack.callback(provider.stop)
        place = FOLDER / "service"
        place.mkdir()
        with closing(Database(f"sqlite:///{place / 'servicex.sqlite'}")) as database:
            database.migrate()
            asyncio.run(database.write(a_day))
        environment = plug_in(
            FOLDER / "installed", "catalogue", "Catalogue", CATALOGUE.format(folder=FOLDER)
        )
        server = Server(place, ["--workers", str(WORKERS)], environment | settings(provider))
        server.start()
        stack.callback(server.stop)
        for name in ISSUERS:
            provider.redirect_to(f"{server.url}/sign-in/{name}/callback")
        yield server, provider


def settings(provider: IdentityProvider) -> dict[str, str]:
    """Return the settings of a service where users sign in."""
    issuers = [
        {
            "name": name,
            "title": title,
            "metadata_url": provider.metadata,
            "client_id": provider.client_id,
            "client_secret": provider.client_secret,
        }
        for name, title in ISSUERS.items()
    ]
    return {
        "SERVICEX_SERVER_SIGN_IN": "true",
        "SERVICEX_SERVER_ACCOUNTS__ISSUERS": json.dumps(issuers),
        "SERVICEX_SERVER_ACCOUNTS__ADMINISTRATORS": '["ada@lab.org"]',
        "SERVICEX_SERVER_READING__LOCAL_FOLDERS": json.dumps([str(FOLDER)]),
        "SERVICEX_SERVER_LIMITS__REQUESTS_PER_USER_AT_ONCE": "20",
        "SERVICEX_SERVER_LIMITS__BYTES_PER_USER": "50000000000",
        "SERVICEX_SERVER_LIMITS__FILES_PER_REQUEST_AT_ONCE": "2",
    }


def a_day(connection: Any) -> None:
    """Write down a day that did not happen: nobody waits for one to take pictures."""
    began, free = now() - timedelta(hours=24), shutil.disk_usage(FOLDER).free
    for minute in range(0, 24 * 60 - 1, 5):
        busy = max(0.0, sin(2 * pi * (minute - 240) / 1200)) * (1 + 0.2 * sin(minute / 9))
        at_work = round(24 * busy)
        seen = service_history.Moment(
            at=began + timedelta(minutes=minute),
            wanted=WORKERS + at_work + round(4 * busy),
            there=WORKERS + at_work,
            busy=at_work,
            waiting=round(2400 * busy**2),
            stored=2000 * minute,
            free=free - 2000 * minute,
        )
        service_history.put(connection, seen)


def files(name: str, count: int, of: str = "uproot-Zmumu.root") -> list[str]:
    """Return copies of a sample in a folder of that name."""
    folder = FOLDER / name
    folder.mkdir(parents=True)
    paths = [folder / f"run-{number:03d}.root" for number in range(1, count + 1)]
    return [str(shutil.copyfile(sample(of), path)) for path in paths]


def acts_as(server: Server, email: str) -> None:
    """Have what is asked of the server from here on come from a user."""
    token = command(server, "token", email, "--name", "analysis facility")
    answer = server.client.post("/token/refresh", headers={"Authorization": f"Bearer {token}"})
    server.client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


@contextmanager
def at_work(server: Server) -> Iterator[dict[str, str]]:
    """Have a dozen requests of two users done, two of which stand; give the ids of some."""
    with xrootd() as near, xrootd("127.0.0.2") as far:
        acts_as(server, "jo@lab.org")
        done = complete(server) | in_two_places(server, near, far) | in_part(server)
        stand = halting(server, "btag", "b-tagging efficiency in tt̄ events")
        acts_as(server, "kim.seo-yeon@university.edu")
        halting(server, "trigger", "Trigger turn-on, single muon")
        yield done | {"running": stand}


def complete(server: Server) -> dict[str, str]:
    """Have requests done that work."""
    zmumu = files("zmumu", 24)
    server.run(title="Z → µµ, quick look at one run", file_list=zmumu[:1])
    server.run(
        title="Z → µµ, quick look at one run", file_list=zmumu[:1], result_format="root-file"
    )
    server.run(
        title="Muon charge and energy, run 278308", file_list=zmumu[:8], selection=query("Q* E*")
    )
    server.run(
        title="Higgs → ZZ → 4µ, muons and missing energy for the control region with two jets",
        file_list=files("hzz", 12, "uproot-HZZ.root"),
        selection=query("Muon_P* Muon_E MET_*"),
    )
    whole = server.run(
        title="Dimuon mass, all runs", file_list=zmumu, selection=query("E1 p?1 E2 p?2 M")
    )
    return {"complete": whole["request_id"]}


def in_two_places(server: Server, near: Any, far: Any) -> dict[str, str]:
    """Have a dataset of a catalogue read: of two sites, one has some bad replicas."""
    places = []
    content = sample("uproot-Zmumu.root").read_bytes()
    for number in range(1, 21):
        name = f"DAOD_PHYSLITE.41892345._{number:06d}.pool.root.1"
        put(far.folder, name, content)
        if number % 9:
            put(near.folder, name, content if number % 7 else content[:9000])
        places.append([near.url(name), far.url(name)])
    (FOLDER / DATASET).write_text(json.dumps(places))
    read = server.run(
        title="Z + jets, nominal sample",
        file_list=None,
        did=f"catalogue://{DATASET}",
        selection=query("E1 E2 M"),
    )
    other = DATASET.replace("Zmumu", "Wmunu")
    server.run(title="W + jets, nominal sample", file_list=None, did=f"catalogue://{other}")
    return {
        "dataset": server.get(f"/servicex/transformation/{read['request_id']}").json()["did_id"]
    }


def in_part(server: Server) -> dict[str, str]:
    """Have requests done that fail for some files, for all, and one that is cancelled."""
    good = files("data18", 6)
    lost = [str(FOLDER / "data18" / f"run-{number:03d}.root") for number in (101, 102, 103)]
    other = files("data18-hists", 2, "uproot-issue21.root")
    mixed = server.run(title="Z peak, all of 2018", file_list=[*good, *lost, *other])
    server.run(title="Z peak, all of 2017", file_list=lost)
    stopped = halting(server, "everything", "Everything, to see how long it takes")
    until(
        lambda: (
            server.get(f"/servicex/transformation/{stopped}").json()["files-completed"] >= STOPPED
        ),
        "some files are done",
    )
    server.get(f"/servicex/transformation/{stopped}/cancel")
    return {"failed": mixed["request_id"], "cancelled": stopped}


def halting(server: Server, name: str, title: str) -> str:
    """Submit a request that stands when most of its files are done."""
    selection = base64.b64encode(HALTS.format(stands=STANDS).encode()).decode()
    asked = files(name, 40)
    answer = server.submit(codegen="python", selection=selection, file_list=asked, title=title)
    return str(answer.json()["request_id"])
