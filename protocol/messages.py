"""Every message of the wire, as frozen structs that are arrays on the wire: [tag, field, …].

An object that exists came through the decoder's checks or was made by our own code. A field may be added at the end
of a message, with a default: peers of the older version leave it out and ignore it. SPEC.md says what each message
means and who sends it when; a test compares its list with `PeerMessage` and `BrokerMessage`.
"""

from __future__ import annotations

from zq.protocol.from_broker import (
    Acked,
    AttemptInfo,
    BeatOk,
    BrokerInfo,
    Change,
    Changed,
    Dispatch,
    Ended,
    EventInfo,
    Events,
    FromBroker,
    Held,
    HourInfo,
    Hours,
    JobDetail,
    JobInfo,
    Jobs,
    Lease,
    QueueInfo,
    Queues,
    QueueSet,
    Receipt,
    Receipts,
    ReceiptStatus,
    Refusal,
    Register,
    Registers,
    RegisterSet,
    Resumed,
    Revoke,
    RevokeReason,
    Welcome,
    Why,
    WhyReason,
    WorkerInfo,
    Workers,
)
from zq.protocol.from_peer import (
    Ack,
    AskBroker,
    AskEvents,
    AskHours,
    AskJob,
    AskJobs,
    AskQueues,
    AskRegisters,
    AskWhy,
    AskWorkers,
    Beat,
    Bye,
    Cancel,
    Credit,
    Drop,
    FromPeer,
    Hello,
    Hold,
    JobProgress,
    LeaseClaim,
    LeaseUsage,
    Progress,
    Result,
    Resume,
    RetryEnded,
    SetQueue,
    SetRegister,
    Submit,
    Wait,
)
from zq.protocol.parts import (
    PROTOCOL_VERSION,
    Attempt,
    ErrorText,
    Items,
    JobId,
    Number,
    Part,
    QueueSlots,
    Request,
    Role,
    Room,
    SessionId,
    Text,
    Token,
    Usage,
)

__all__ = [
    "PROTOCOL_VERSION", "Ack", "Acked", "AskBroker", "AskEvents", "AskHours", "AskJob", "AskJobs", "AskQueues",
    "AskRegisters", "AskWhy", "AskWorkers", "Attempt", "AttemptInfo", "Beat", "BeatOk", "BrokerInfo",
    "BrokerMessage", "Bye", "Cancel", "Change", "Changed", "Credit", "Dispatch", "Drop", "Ended", "ErrorText",
    "EventInfo", "Events", "FromBroker", "FromPeer", "Held", "Hello", "Hold", "HourInfo", "Hours", "Items",
    "JobDetail", "JobId", "JobInfo", "JobProgress", "Jobs", "Lease", "LeaseClaim", "LeaseUsage", "Number", "Part",
    "PeerMessage", "Progress", "QueueInfo", "QueueSet", "QueueSlots", "Queues", "Receipt", "ReceiptStatus",
    "Receipts", "Refusal", "Register", "RegisterSet", "Registers", "Request", "Result", "Resume", "Resumed",
    "RetryEnded", "Revoke", "RevokeReason", "Role", "Room", "SessionId", "SetQueue", "SetRegister", "Submit",
    "Text", "Token", "Usage", "Wait", "Welcome", "Why", "WhyReason", "WorkerInfo", "Workers",
]  # fmt: skip

PeerMessage = (
    Hello | Bye | Beat | Submit | Credit | Ack | Resume | Progress | Hold | Cancel | RetryEnded | Wait
    | AskQueues | AskJobs | AskJob | AskWorkers | AskBroker | Drop | SetQueue | AskWhy | AskEvents
    | AskRegisters | SetRegister | AskHours
)  # fmt: skip
BrokerMessage = (
    Welcome | Receipts | Dispatch | Acked | Resumed | BeatOk | Held | Revoke | Ended | Queues | Jobs | JobDetail
    | Workers | Changed | BrokerInfo | Why | Events | QueueSet | Registers | RegisterSet
    | Hours | Refusal
)  # fmt: skip
