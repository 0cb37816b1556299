package detail

import (
	"bytes"
	"encoding/gob"

	"bailiwick/shared/usage"
)

func decodeRows(b []byte) (rows []usage.Row, err error) {
	return rows, gob.NewDecoder(bytes.NewReader(b)).Decode(&rows)
}

func encodeRows(rows []usage.Row) ([]byte, error) {
	var buf bytes.Buffer
	err := gob.NewEncoder(&buf).Encode(rows)
	return buf.Bytes(), err
}
