package main

// How an edge ends: by its own stop, or for another process.

var leavingBugs = []bug{
	{name: "relay-taken-while-leaving", breaks: "an edge that leaves takes no relay, so that its drain ends",
		edits:  []edit{{serverFile, "\tif s.left {\n\t\ts.mu.Unlock()", "\tif false && s.left {\n\t\ts.mu.Unlock()"}},
		checks: []check{{relayPkg, "TestServer_DrainsWhatItHasTaken"}}},
	{name: "relay-not-drained", breaks: "relays under way have the time that clients' requests have",
		edits:  []edit{{serverFile, "s.InFlight() > 0; wait", "false; wait"}},
		checks: []check{{relayPkg, "TestServer_DrainsWhatItHasTaken"}}},
	{name: "relay-outlasts-the-drain", breaks: "and no longer",
		edits:  []edit{{serverFile, "\t\t\tfor _, f := range cut {\n\t\t\t\tf.cut()\n\t\t\t}\n\t\t\treturn", "\t\t\t_ = cut\n\t\t\treturn"}},
		checks: []check{{relayPkg, "TestServer_DrainsWhatItHasTaken"}}},
	{name: "leaving-peer-is-asked-again", breaks: "a peer that leaves is asked once",
		edits:  []edit{{sessionFile, "\ts.left = s.left || s.conn == conn\n", "\t_ = conn\n"}},
		checks: []check{{relayPkg, "TestClient_DialsAnewWhereAPeerLeaves"}}},
	{name: "leaving-peer-is-no-peer", breaks: "also where its sign of life says that it leaves",
		edits:  []edit{{sessionFile, "errors.Is(err, errLeaving) {", "false {"}},
		checks: []check{{relayPkg, "TestClient_DialsAnewWhereAPeerLeaves"}}},
	{name: "leaving-peer-speaks-for-its-region", breaks: "an edge that leaves says nothing of its region's upstreams",
		edits:  []edit{{clientFile, "Down: down && !leaving,", "Down: down,"}},
		checks: []check{{relayPkg, "TestServer_DrainsWhatItHasTaken"}, {relayPkg, "TestClient_DialsAnewWhereAPeerLeaves"}}},
	{name: "request-lost-to-a-leaving-edge", breaks: "what an edge that leaves did not take goes to the next one there",
		edits:  []edit{{proxyPkg + "/attempt.go", "if x.relayTo(ctx, c, res) && !x.gone() {", "if x.relayTo(ctx, c, res) && false {"}},
		checks: []check{{proxyPkg, "TestRelay_GoesToWhoeverComesAfterAnEdgeThatLeaves"}}},
	{name: "websocket-unheard-of-leaving", breaks: "a WebSocket through another region hears that the edge there goes",
		edits:  []edit{{proxyPkg + "/path.go", "&socketAsk{leaving: in.Leaving}", "&socketAsk{}"}},
		checks: []check{{proxyPkg, "TestSocket_HearsThatTheOtherRegionsEdgeGoes"}}},
}
