package apikey

import (
	"encoding/hex"
	"strings"
)

// Kinds of keys without a text: who shows what they are bound to is known by it.
const (
	KindCertificate = "certificate" // of a client: the SHA-256 of its SubjectPublicKeyInfo, lower-case hex
	KindToken       = "token"       // of an issuer that the API trusts: TokenText
)

// TokenText is what a key of KindToken is bound to. Neither part may hold a new line.
func TokenText(issuer, subject string) string { return issuer + "\n" + subject }

// Bound is the id and the digest of a key that is bound to a certificate or a token. The id follows from it under the pepper:
// it says nothing of a subject, who may be a person, to anybody else.
func (h *Hasher) Bound(kind, text string) (id string, d Digest) {
	d = h.Sum("bailiwick-bound/1\n" + kind + "\n" + text)
	named := h.Sum("bailiwick-bound-id/1\n" + kind + "\n" + text)
	return strings.Clone(kind[:3]) + "-" + hex.EncodeToString(named[:12]), d
}
