package main

import "slices"

// Versions of the rules of the pair, and as bits from version 1 on which of them permit it.
var (
	openShut     = []string{"-DNV=2", "-DOPEN=2"}
	openShutOpen = []string{"-DNV=3", "-DOPEN=10"}
	shutOpenShut = []string{"-DNV=3", "-DOPEN=4"}
)

var searches = func() []search {
	border := func(name, want, why string, versions []string, defines ...string) search {
		return search{Name: "border/" + name, Model: "border", Want: want, Why: why, Defines: slices.Concat(versions, defines)}
	}
	hop := func(name, want, why string, defines ...string) search {
		return search{Name: "hop/" + name, Model: "hop", Want: want, Why: why, Defines: defines}
	}
	without := func(guard, why string, versions []string, more ...string) search {
		return border("without-"+guard, breaks, why, versions, append(more, "-DNO_"+guard)...)
	}
	hopWithout := func(guard, why string, more ...string) search {
		return hop("without-"+guard, breaks, why, append(more, "-DNO_"+guard)...)
	}
	long := func(s search) search {
		s.Long = true
		return s
	}
	return []search{
		border("open-shut-open", holds, "three versions: the pair is closed, and opened again", openShutOpen),
		long(border("shut-open-shut", holds, "three versions: the pair is opened, and closed again", shutOpenShut)),
		long(border("offline", holds, "grants that last longer while the control plane is silent", openShutOpen, "-DOFF=2")),
		long(border("offline-shut", holds, "the same, opened and closed again", shutOpenShut, "-DOFF=2")),
		long(border("longer", holds, "grants of two ticks, three offline", openShutOpen, "-DTTL=2", "-DOFF=3")),
		hop("honest", holds, "three regions, three versions, retries"),
		long(hop("rogue", holds, "the edge of one region sends what it likes: receivers alone keep the border", "-DROGUE=1")),

		without("RECHECK", "relay.Client.Do: grant.Held.Leave is asked once more before the request leaves", openShut),
		without("RECEIVER", "grant.Admit: Permits of the receiver's own table", openShut),
		without("CUT", "relay.Client.Enforce, Server.Enforce (grant.Held.Keep, Flight.Stands): what is not permitted any more is cut", openShut),
		without("CUTWAIT", "grant.Book.InForce: an acknowledgement counts after Cut", openShut),
		without("LAPSE", "grant.Book.InForce: senders that have not acknowledged count until their grants end", openShut),
		without("BARRIER", "grant.Book.InForce: a word counts from the barrier on", openShut),
		without("SLACK", "grant.Slack: the leader counts longer than the edge", openShut),
		without("OFFLINE", "grant.Lives: the leader counts the longest life, offline included", openShut, "-DOFF=2"),
		without("ASKED", "failover.Grants.ask: a life counts from the question, not from the answer", openShut),
		without("NEWLEADER", "grant.Open: a new leader takes every edge for holding a full grant", openShut),
		without("LOGGED", "border.Keeper.Grant: a quorum takes the record before the grant is given, under the same noticed rules", openShut),
		without("MONO", "subscribe.staged.stale: an edge goes to no older table", openShut),
		without("FSYNC", "subscribe.session.accept: a table is on disk before it is in force and acknowledged", openShut),
		without("FRESH", "grant.FreshTable: an edge with an older table gets no grant", openShutOpen),
		without("NOTICED", "grant.Noticed, view: only what the leader has noticed is granted and pushed", openShutOpen),

		hopWithout("RECHECK", "failover.Attempts.Next, relay.Client.Do: each attempt asks anew"),
		hopWithout("RECEIVER", "grant.Admit: Permits of the receiver's own table"),
		hopWithout("PAIR", "grant.Held.Leave: Permits of the sender's table"),
		hopWithout("GRANT", "grant.Held.Leave: a live grant"),
		hopWithout("HOME", "proxy: the home region is where the request was accepted, not what a header says"),
		hopWithout("HOP", "relay.Local: a relayed request goes to the own upstream and nowhere else"),
		hopWithout("DIRECTION", "regions.Set.Permits: a pair has a direction"),
		hopWithout("DIRECT", "regions.Set.Permits: two pairs are not a third"),
		hopWithout("FITS", "grant.Grant.Fits: a grant is for one edge and one pair", "-DROGUE=1"),
		hopWithout("ORIGIN", "relay.Server.admit: the home is the region of the peer's certificate", "-DROGUE=1"),

		border("relayed", reaches, "a permitted pair with a grant is used", openShutOpen, "-DREACH=1"),
		border("relayed-once-opened", reaches, "a pair that was opened later is used", openShutOpen, "-DREACH=2"),
		border("relayed-offline", reaches, "a relay on the offline lifetime", openShutOpen, "-DOFF=2", "-DREACH=3"),
		border("record-by-senders", reaches, "in force since every sender has acknowledged", openShutOpen, "-DREACH=4"),
		border("record-by-lapse", reaches, "in force since the grants of a sender out of reach have ended", openShutOpen, "-DREACH=5"),
		border("record-by-receivers", reaches, "in force since the receivers have acknowledged, with a sender that still holds a grant", openShutOpen, "-DREACH=6"),
		hop("relayed", reaches, "a permitted pair with a grant is used", "-DREACH=1"),
		hop("relayed-at-second", reaches, "the second region tried takes it", "-DREACH=2"),
		hop("relayed-to-rogue", reaches, "the rogue's relays are taken where they are permitted", "-DROGUE=1", "-DREACH=1"),
	}
}()
