package websocket_test

import (
	"testing"

	"bailiwick/dataplane/internal/websocket"
)

func TestReadOffer_IsStrict(t *testing.T) {
	good := func() map[string][]string {
		return map[string][]string{"Upgrade": {"websocket"}, "Connection": {"keep-alive, Upgrade"}, websocket.HeaderVersion: {"13"},
			websocket.HeaderKey: {"dGhlIHNhbXBsZSBub25jZQ=="}, websocket.HeaderProtocol: {"chat, superchat", "x"}}
	}
	o, err := websocket.ReadOffer(good())
	if err != nil || len(o.Protocols) != 3 {
		t.Fatal(o, err)
	}
	if got := websocket.Accept(o.Key); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" { // RFC 6455 §1.3
		t.Errorf("accept is %s", got)
	}
	for name, c := range map[string]struct {
		change func(map[string][]string)
		want   error
	}{
		"no upgrade":             {func(h map[string][]string) { delete(h, "Upgrade") }, websocket.ErrConnection},
		"two upgrades":           {func(h map[string][]string) { h["Upgrade"] = []string{"websocket, h2c"} }, websocket.ErrConnection},
		"connection elsewhere":   {func(h map[string][]string) { h["Connection"] = []string{"keep-alive"} }, websocket.ErrConnection},
		"no version":             {func(h map[string][]string) { delete(h, websocket.HeaderVersion) }, websocket.ErrVersion},
		"version 8":              {func(h map[string][]string) { h[websocket.HeaderVersion] = []string{"8"} }, websocket.ErrVersion},
		"no key":                 {func(h map[string][]string) { delete(h, websocket.HeaderKey) }, websocket.ErrKey},
		"two keys":               {func(h map[string][]string) { h[websocket.HeaderKey] = append(h[websocket.HeaderKey], "x") }, websocket.ErrKey},
		"a short key":            {func(h map[string][]string) { h[websocket.HeaderKey] = []string{"dGhlIHNhbXBsZQ=="} }, websocket.ErrKey},
		"a long key":             {func(h map[string][]string) { h[websocket.HeaderKey] = []string{"dGhlIHNhbXBsZSBub25jZQ==dGhl"} }, websocket.ErrKey},
		"a key of loose bits":    {func(h map[string][]string) { h[websocket.HeaderKey] = []string{"dGhlIHNhbXBsZSBub25jZR=="} }, websocket.ErrKey},
		"a protocol twice":       {func(h map[string][]string) { h[websocket.HeaderProtocol] = []string{"a, a"} }, websocket.ErrProtocols},
		"a protocol of none":     {func(h map[string][]string) { h[websocket.HeaderProtocol] = []string{"a,,b"} }, websocket.ErrProtocols},
		"a protocol with spaces": {func(h map[string][]string) { h[websocket.HeaderProtocol] = []string{"a b"} }, websocket.ErrProtocols},
	} {
		h := good()
		c.change(h)
		if _, err := websocket.ReadOffer(h); err != c.want {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestCheck_TakesOnlyWhatWasOffered(t *testing.T) {
	key := websocket.NewKey()
	answer := func(change ...string) map[string][]string {
		h := map[string][]string{"Upgrade": {"WebSocket"}, "Connection": {"upgrade"}, websocket.HeaderAccept: {websocket.Accept(key)}}
		for i := 0; i < len(change); i += 2 {
			h[change[i]] = []string{change[i+1]}
		}
		return h
	}
	if p, err := websocket.Check(answer(websocket.HeaderProtocol, "b"), key, []string{"a", "b"}); p != "b" || err != nil {
		t.Fatal(p, err)
	}
	for name, h := range map[string]map[string][]string{
		"another key":        answer(websocket.HeaderAccept, websocket.Accept(websocket.NewKey())),
		"another upgrade":    answer("Upgrade", "h2c"),
		"no connection":      answer("Connection", "keep-alive"),
		"another protocol":   answer(websocket.HeaderProtocol, "c"),
		"two protocols":      answer(websocket.HeaderProtocol, "a, b"),
		"an extension":       answer(websocket.HeaderExtensions, "permessage-deflate"),
		"protocol, none was": answer(websocket.HeaderProtocol, ""),
	} {
		if _, err := websocket.Check(h, key, []string{"a", "b"}); err == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
}
