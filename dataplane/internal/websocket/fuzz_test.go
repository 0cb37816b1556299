package websocket_test

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"testing"

	"bailiwick/dataplane/internal/websocket"
)

// A handshake is taken if each of its fields says one thing, by the letter; and what is answered to it its sender takes.
func FuzzReadOffer(f *testing.F) {
	f.Add("websocket", "Upgrade", "13", "dGhlIHNhbXBsZSBub25jZQ==", "chat, superchat", "chat")
	f.Add("WebSocket", "keep-alive,upgrade", "13", "dGhlIHNhbXBsZSBub25jZR==", "", "")
	f.Add("websocket, h2c", "Upgrade", "8", "AAAAAAAAAAAAAAAAAAAAAA==", "a,,b", "b")
	f.Add("websocket", "upgrade", "13", "AAAAAAAAAAAAAAAAAAAAAA==\n", "a, a", "a")
	f.Fuzz(func(t *testing.T, upgrade, connection, version, key, protocols, chosen string) {
		h := map[string][]string{"Upgrade": {upgrade}, "Connection": {connection}, websocket.HeaderVersion: {version}, websocket.HeaderKey: {key}}
		if protocols != "" {
			h[websocket.HeaderProtocol] = []string{protocols}
		}
		o, err := websocket.ReadOffer(h)
		if err != nil {
			return
		}
		raw, bad := base64.StdEncoding.DecodeString(o.Key)
		if o.Key != key || bad != nil || len(raw) != 16 || base64.StdEncoding.EncodeToString(raw) != key || version != "13" || !strings.EqualFold(strings.TrimSpace(upgrade), "websocket") {
			t.Fatalf("took %q %q %q %q", upgrade, connection, version, key)
		}
		if slices.Contains(o.Protocols, "") || len(o.Protocols) > 32 || strings.Join(o.Protocols, ",") != strings.NewReplacer(" ", "", "\t", "").Replace(protocols) {
			t.Fatalf("of %q it took %q", protocols, o.Protocols)
		}
		answer := map[string][]string{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, websocket.HeaderAccept: {websocket.Accept(o.Key)}}
		if p, err := websocket.Check(answer, o.Key, o.Protocols); err != nil || p != "" {
			t.Fatalf("an answer by the letter is not taken: %q, %v", p, err)
		}
		answer[websocket.HeaderProtocol] = []string{chosen}
		if p, err := websocket.Check(answer, o.Key, o.Protocols); (err == nil) != slices.Contains(o.Protocols, chosen) || err == nil && p != chosen {
			t.Fatalf("of %q the upstream chose %q: %q, %v", o.Protocols, chosen, p, err)
		}
	})
}

// Of an upstream's answer only one is taken that proves that it has read this handshake.
func FuzzCheck(f *testing.F) {
	const key = "dGhlIHNhbXBsZSBub25jZQ=="
	f.Add("websocket", "Upgrade", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "", "")
	f.Add("websocket", "close", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo", "a", "permessage-deflate")
	f.Fuzz(func(t *testing.T, upgrade, connection, accept, protocol, extensions string) {
		h := http.Header{"Upgrade": {upgrade}, "Connection": {connection}, websocket.HeaderAccept: {accept}}
		if protocol != "" {
			h[websocket.HeaderProtocol] = []string{protocol}
		}
		if extensions != "" {
			h[websocket.HeaderExtensions] = []string{extensions}
		}
		p, err := websocket.Check(h, key, []string{"a", "b"})
		if err == nil && (strings.TrimSpace(accept) != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || extensions != "" || p != protocol || p != "" && p != "a" && p != "b") {
			t.Fatalf("took %v: %q", h, p)
		}
	})
}
