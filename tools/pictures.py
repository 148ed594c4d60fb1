"""Write the pictures of the pages in docs/images: of a request of a real service, in a browser."""

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.support import Server, needed, sample

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    """Start a service, ask it for something that fails in part, and take the pictures."""
    program = needed("chromium", "apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(Path(folder) / "data", ["--workers", "2"]).start()
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            good, bad = sample("uproot-Zmumu.root"), sample("uproot-issue21.root")
            server.run(title="Muons of one run")
            files = [str(good), "/data/run1.root", "/data/run2.root", str(bad)]
            mixed = server.run(title="Z peak, all runs", file_list=files)["request_id"]
            for name, path, scheme in (
                ("requests", "/requests", "dark"),
                ("request", f"/requests/{mixed}", "light"),
            ):
                size = {"width": 1280, "height": 850}
                page = browser.new_page(base_url=server.url, color_scheme=scheme, viewport=size)
                page.goto(path)
                page.screenshot(path=IMAGES / f"page-{name}-{scheme}.png")
        finally:
            browser.close()
            server.stop()


if __name__ == "__main__":
    main()
