package shelf_test

import (
	"testing"

	"bailiwick/shared/identity/shelf"
)

func TestGuards(t *testing.T) {
	issue := shelf.IssueLock("api.example.test")
	for _, c := range []struct {
		lock, key string
		want      bool
	}{
		{issue, "certificates/ca/api.example.test/api.example.test.key", true},
		{issue, "certificates/ca/api.example.test", true},
		{issue, "certificates/ca/other.example.test/other.example.test.crt", false},
		{issue, "certificates/ca/x/api.example.test", false},
		{issue, "certificates/ca", false},
		{issue, "acme/ca/challenge_tokens/api.example.test.json", true},
		{issue, "acme/ca/challenge_tokens/other.example.test.json", false},
		{issue, "acme/ca/users/me@example.test/me.key", true},
		{issue, "acme/ca", false},
		{issue, "elsewhere/ca/api.example.test", false},
		{shelf.IssueLock("*.example.test"), "certificates/ca/wildcard_.example.test/x", true},
		{shelf.IssueLock(""), "certificates/ca//x", false},
		{"register_acme_account", "acme/ca/users/default/default.json", true},
		{"register_acme_account_me@example.test", "acme/ca/users/me@example.test/me.json", true},
		{"register_acme_account", "certificates/ca/api.example.test/api.example.test.key", false},
		{"register_acme_accounts", "acme/ca/users/x", false},
		{"ari_abc", "certificates/ca/api.example.test/api.example.test.json", false},
		{"", "certificates/ca/api.example.test/x", false},
	} {
		if got := shelf.Guards(c.lock, c.key); got != c.want {
			t.Errorf("%q guards %q: got %v, want %v", c.lock, c.key, got, c.want)
		}
	}
}
