"""Every mail, written to a file and opened in Chromium as narrow and wide clients show it, in light and dark.

Look at them: pytest --basetemp FOLDER keeps the files.
"""

import itertools
from pathlib import Path

import pytest

from testing.browser import chromium
from tests.unit.mail.test_messages import TOKEN, every_mail
from vault.auth import mails
from vault.mail.messages import MessageRenderer

TEXT_COLORS = {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}
MEASURE = """
const style = (selector) => { const e = document.querySelector(selector); return e && getComputedStyle(e) };
const button = style('table a');
return {
  width: document.documentElement.scrollWidth,
  text: style('body').color,
  paragraphs: new Set([...document.querySelectorAll('p')].map(p => getComputedStyle(p).color)).size,
  button: button && [button.color, button.backgroundColor],
}
"""


@pytest.mark.slow
def test_mails_fit_narrow_and_wide_clients_and_follow_their_colours(tmp_path: Path) -> None:
    long_url = "https://a-very-long-name-of-a-vault.department-of-long-names.internal.example.org/applications/vault"
    shown = every_mail(MessageRenderer("https://vault.example.org", "https://vault.example.org"))
    shown.append(MessageRenderer(long_url, long_url).render(mails.ADMIN_INVITATION, "anna@example.org", token=TOKEN))
    pages = [tmp_path / f"{number:02} {mail.subject}.html" for number, mail in enumerate(shown)]
    for page, mail in zip(pages, shown, strict=True):
        page.write_text(mail.html)

    with chromium() as browser:
        for scheme, width, page in itertools.product(TEXT_COLORS, (360, 1000), pages):
            scheme_asked = {"name": "prefers-color-scheme", "value": scheme}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme_asked]})
            size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            browser.get(page.as_uri())
            seen = browser.execute_script(MEASURE)

            where = (page.name, scheme, width)
            assert seen["width"] <= width, where
            assert (seen["text"], seen["paragraphs"]) == (TEXT_COLORS[scheme], 1), where
            assert seen["button"] in (None, ["rgb(255, 255, 255)", "rgb(29, 78, 216)"]), where
