"""Mail by SendGrid's v3 API: https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send"""

import email.utils
import http.client
import json
import ssl
from contextlib import closing
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from vault.mail.messages import MailDelayed, MailRefused, OutgoingMail, deliverable
from vault.mail.time_limits import TimeLimit

_TIMEOUT_SECONDS: Final = 10.0
# In total, so that the outbox's lease outlasts every sending.
_TOTAL_SECONDS: Final = 15.0
_MOST_OF_AN_ANSWER: Final = 4096
# Answers below 500 that do not concern the mail: a gateway's time-out and too many requests.
_TEMPORARY: Final = {408, 429}


class SendGridMailer:
    """Sends mails by SendGrid. Follows no redirect; takes no proxy or password from the environment."""

    def __init__(self, api_key: str, sender: str, *, endpoint_url: str) -> None:
        self._api_key = api_key
        self._endpoint = urlsplit(endpoint_url)
        name, address = email.utils.parseaddr(sender)
        self._sender = {"email": deliverable(address)} | ({"name": name} if name else {})

    def send(self, mail: OutgoingMail) -> None:
        with TimeLimit(_TOTAL_SECONDS) as limit, closing(self._connection()) as connection:
            # http.client's connect gives each address of the host the whole time-out.
            connection._create_connection = limit.connect  # type: ignore[attr-defined]
            try:
                connection.connect()
                sock = connection.sock
                limit.watch(lambda: sock)
                limit.check()
                with closing(self._post(connection, mail)) as response:
                    # A truncated head looks complete, but is not an answer (RFC 9112, 8).
                    limit.check()
                    _judge(response)
            except (http.client.HTTPException, OSError) as exc:
                reason = "TimeoutError" if limit.is_over else type(exc).__name__
                raise MailDelayed(reason, answer=str(exc)) from exc

    def _connection(self) -> http.client.HTTPConnection:
        host = self._endpoint.hostname or ""
        if self._endpoint.scheme == "http":
            return http.client.HTTPConnection(host, self._endpoint.port, timeout=_TIMEOUT_SECONDS)
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, self._endpoint.port, timeout=_TIMEOUT_SECONDS, context=context)

    def _post(self, connection: http.client.HTTPConnection, mail: OutgoingMail) -> http.client.HTTPResponse:
        connection.request(
            "POST",
            f"{self._endpoint.path}/v3/mail/send",
            body=json.dumps(self._payload(mail)).encode(),
            headers={
                "Authorization": f"Bearer {self._api_key}",
                "Content-Type": "application/json",
                "Accept": "application/json",
                "Connection": "close",
            },
        )
        return connection.getresponse()

    def _payload(self, mail: OutgoingMail) -> dict[str, Any]:
        return {
            "personalizations": [{"to": [{"email": deliverable(mail.recipient)}]}],
            "from": self._sender,
            "subject": mail.subject,
            "content": [{"type": "text/plain", "value": mail.text}, {"type": "text/html", "value": mail.html}],
            "headers": {"Message-ID": mail.message_id, "Auto-Submitted": "auto-generated"},
            # Links must not lead through a click counter; the account's own settings may say otherwise.
            "tracking_settings": {
                "click_tracking": {"enable": False, "enable_text": False},
                "open_tracking": {"enable": False},
                "subscription_tracking": {"enable": False},
                "ganalytics": {"enable": False},
            },
        }


def _judge(response: http.client.HTTPResponse) -> None:
    if response.status == HTTPStatus.ACCEPTED:
        return
    is_final = 400 <= response.status < 500 and response.status not in _TEMPORARY
    raise (MailRefused if is_final else MailDelayed)(
        f"sendgrid_{response.status}",
        answer=_errors_in(response),
        retry_after_seconds=_pause_asked_for(response.headers),
    )


def _errors_in(response: http.client.HTTPResponse) -> str:
    """Return the sentences of SendGrid's answer, empty if unreadable, since only the status counts."""
    try:
        found = json.loads(response.read(_MOST_OF_AN_ANSWER))
        return " ".join(str(error["message"]) for error in found["errors"])
    except (http.client.HTTPException, OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""


def _pause_asked_for(headers: http.client.HTTPMessage) -> float:
    """Return seconds by Retry-After (RFC 9110, 10.2.3), or until X-RateLimit-Reset; 0 without either."""
    asked, reset = headers.get("Retry-After", ""), headers.get("X-RateLimit-Reset", "")
    now = datetime.now(UTC)
    if asked.isascii() and asked.isdigit():
        return float(asked)
    try:
        until = email.utils.parsedate_to_datetime(asked).astimezone(UTC)
    except (ValueError, OverflowError):
        if not (reset.isascii() and reset.isdigit()):
            return 0
        return max(0.0, float(reset) - now.timestamp())
    return max(0.0, (until - now).total_seconds())
