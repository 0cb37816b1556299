package alert

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"bailiwick/shared/fault"
)

const secretPrefix = "whsec_"

// newSecret draws a signing secret as Standard Webhooks writes them: 24 to 64 random bytes in base64.
func newSecret() string {
	var b [32]byte
	rand.Read(b[:])
	return secretPrefix + base64.StdEncoding.EncodeToString(b[:])
}

// sign is the value of webhook-signature: one HMAC-SHA256 a secret, over id, time and body (Standard Webhooks 1.0.0,
// "v1"). A receiver takes the message if any of them is right, which is how secrets are replaced without a gap.
func sign(id string, at time.Time, body []byte, secrets []string) (string, error) {
	var out []string
	for _, s := range secrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s, secretPrefix))
		if err != nil {
			return "", fmt.Errorf("sign %s: the secret is not base64", id)
		}
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
		mac.Write(body)
		out = append(out, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	return strings.Join(out, " "), nil
}

// bound is what a sealed secret belongs to: put beside another webhook's record it does not open.
func bound(w Webhook) []byte { return []byte("webhook " + w.ID) }

func (s *Service) close(w Webhook, text string) []byte {
	return s.seal.Seal(nil, nil, []byte(text), bound(w))
}

// secrets opens those that sign now.
func (s *Service) secrets(w Webhook, at time.Time) ([]string, error) {
	var out []string
	for _, sealed := range w.Secrets {
		if !sealed.Until.IsZero() && !at.Before(sealed.Until) {
			continue
		}
		text, err := s.seal.Open(nil, nil, sealed.Sealed, bound(w))
		if err != nil {
			return nil, fault.New(fault.Internal, "SECRET_UNREADABLE", "webhook %s: its secret is not sealed under this zone's key: rotate it", w.Name)
		}
		out = append(out, string(text))
	}
	return out, nil
}
