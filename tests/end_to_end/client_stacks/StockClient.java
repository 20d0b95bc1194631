// Java's own HttpClient as it comes: over plain HTTP it offers h2c with its first request, the body along with it.

import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.stream.Collectors;

public class StockClient {
    static final String CHAT =
            """
            {"model": "m", "user": "ann", "stream": %s, "messages": [{"role": "user", "content": "hello"}]}""";

    static HttpRequest request(boolean stream, boolean chunked) {
        byte[] body = CHAT.formatted(stream).getBytes();
        return HttpRequest.newBuilder(URI.create(System.getenv("GATEWAY") + "/v1/chat/completions"))
                .header("Authorization", "Bearer " + System.getenv("KEY"))
                .header("Content-Type", "application/json")
                .POST(chunked ? BodyPublishers.fromPublisher(BodyPublishers.ofByteArray(body))
                        : BodyPublishers.ofByteArray(body))
                .build();
    }

    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        StringBuilder lines = new StringBuilder();
        for (boolean chunked : new boolean[] {false, true}) { // the second goes over the connection of the first
            var answer = client.send(request(false, chunked), BodyHandlers.ofString());
            lines.append(answer.statusCode()).append(' ').append(answer.body()).append('\n');
        }
        var streamed = client.send(request(true, false), BodyHandlers.ofLines());
        lines.append(streamed.statusCode()).append(' ');
        lines.append(streamed.body().filter(line -> !line.isBlank()).collect(Collectors.joining(" "))).append('\n');
        var fresh = HttpClient.newHttpClient().sendAsync(request(true, true), BodyHandlers.ofString()).join();
        lines.append(fresh.statusCode()).append(' ').append(fresh.body().replace("\n", " "));
        System.out.println(lines);
    }
}
